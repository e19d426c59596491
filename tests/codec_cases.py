"""Compressed programs that every rank runs and asserts, whatever it is: a thread or a process."""

import hashlib

import numpy as np

from comm_cases import GUARD, guarded, refused, sizes
from minipar.comm import CODECS, Codec, collective, compressed, copy, recv, send
from minipar.comm.program import ALGORITHMS

HALVES = [CODECS["float16"], CODECS["bfloat16"]]
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # of one rounding


def _scaled_encode(array, out):
    scale = np.abs(array).max(initial=0).astype(np.float32) or np.float32(1)
    out[:4] = np.array([scale], np.float32).view(np.uint8)
    out[4:].view(np.int8)[...] = np.rint(array * (127 / scale))


def _scaled_decode(buffer, array):
    np.multiply(buffer[4:].view(np.int8), buffer[:4].view(np.float32)[0] / 127, out=array,
                casting="same_kind")


# A user's own: one byte an element, and one scale a chunk.
scaled = Codec("int8 with a scale", lambda n, itemsize: n + 4, _scaled_encode, _scaled_decode,
               ("float32", "float64"))


@collective("broadcast")
def scaled_broadcast(rank, size, x, root):
    """The root's own copy is rounded too; nobody sends on what was rounded once."""
    if rank == root:
        yield [send(x, peer, codec=scaled) for peer in range(size) if peer != root]
        yield copy(x, x, codec=scaled)
    else:
        yield recv(x, root, codec=scaled)


def given(rank, n, dtype):
    return np.random.default_rng([11, rank]).standard_normal(n).astype(dtype)


def compressed_sums(comm):
    """Every all-reduce of messages, compressed: near the sum, the same bits on all ranks."""
    p = comm.size
    for i, program in enumerate(ALGORITHMS["all_reduce"].values()):
        if program.refusal(p) or program.name == "shared":
            continue
        for j, n in enumerate(sizes(p)):
            codec, dtype = HALVES[(i + j) % 2], (np.float32, np.float64)[j % 2]
            buffer, x = guarded(given(comm.rank, n, dtype))
            plan = comm.plan("all_reduce", x, algorithm=compressed(program, codec))
            for run in range(2):
                x[...] = given(comm.rank, n, dtype)
                plan.start()
                plan.wait()
                assert (buffer[n:] == GUARD).all()
                exact = sum(given(r, n, np.float64) for r in range(p))
                bound = sum(np.abs(given(r, n, np.float64)) for r in range(p))
                worst = (np.abs(x - exact) / bound).max(initial=0)
                assert worst <= 2 * p * EPS[codec.name], (program.name, n, worst)
                assert p == 1 or n < 100 or worst > EPS[codec.name] / 100  # it was compressed
                for other in comm.all_gather(x):
                    assert other.tobytes() == x.tobytes(), (program.name, n)
            comm.free(plan)
    refused(TypeError, ["float16", "float32 and float64", "int32"] if p > 1 else [],
            comm.all_reduce if p > 1 else _refuse, np.zeros(3, np.int32), "sum",
            compressed(ALGORITHMS["all_reduce"]["ring"], HALVES[0]))


def _refuse(*args):
    raise TypeError


def a_codec_of_the_user(comm):
    for root in range(comm.size):
        for n in sizes(comm.size):
            x = given(comm.rank, n, np.float32)
            comm.broadcast(x, root, scaled_broadcast)
            expected = given(root, n, np.float32)
            if comm.size > 1:
                assert n == 0 or np.abs(x - expected).max() <= np.abs(expected).max() / 253
                expected = scaled.round_trip(expected)
            else:
                expected = scaled.round_trip(expected)
            assert x.tobytes() == expected.tobytes()


CASES = [compressed_sums, a_codec_of_the_user]


def digest(comm):
    """A hash of what compressed sums come to, equal on all ranks and transports."""
    found = hashlib.sha256()
    for name in ("ring", "recursive_doubling", "double_binary_tree"):
        x = given(comm.rank, 10_007, np.float32)
        comm.all_reduce(x, algorithm=compressed(ALGORITHMS["all_reduce"][name], HALVES[0]))
        found.update(x.tobytes())
    return found.hexdigest()
