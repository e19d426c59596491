"""Codecs: what they round, what the verifier says of programs that use them, and that these run."""

import inspect
import warnings

import numpy as np
import pytest

import codec_cases
from codec_cases import scaled, scaled_broadcast
from launch import mpirun
from minipar.comm import (CODECS, Codec, both, channels, collective, compressed, copy, launch,
                          recv, recv_reduce, reduce, run_threads, send, world)
from minipar.comm.algorithms.ring import ring
from minipar.comm.codecs import broken_promise
from minipar.comm.cost import cost
from minipar.comm.graph import GraphError, lower
from minipar.comm.program import ALGORITHMS, ProgramError
from minipar.comm.transport.threads import Threads
from minipar.comm.verify import VerificationError, verify, verify_traces

float16, bfloat16, identity = CODECS["float16"], CODECS["bfloat16"], CODECS["identity"]
SENT = [p for p in ALGORITHMS["all_reduce"].values() if p.name != "shared"]


# ------------------------------------------------------------------ the codecs


def bits_of_odd_floats():
    rng = np.random.default_rng(3)
    upper = rng.integers(0, 2**16, 20_000, np.uint32)
    lower = rng.choice([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], upper.size).astype(np.uint32)
    return np.concatenate([upper << 16 | lower, rng.integers(0, 2**32, 200_001, np.uint32)])


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan_and_infinity():
    x = bits_of_odd_floats().view(np.float32)
    wire = np.empty(2 * x.size, np.uint8)
    bfloat16.encode(x, wire)
    got, nan = wire.view(np.uint16).astype(np.int64), np.isnan(x)
    whole, rest = np.divmod(x.view(np.uint32).astype(np.int64), 2**16)
    expected = whole + ((rest > 0x8000) | (rest == 0x8000) & (whole % 2 == 1))
    assert (got == expected)[~nan].all() and nan.any()
    out = np.empty_like(x)
    bfloat16.decode(wire, out)
    assert np.isnan(out[nan]).all() and not np.isnan(out[~nan]).any()
    assert np.isinf(out[np.isinf(x)]).all()


@pytest.mark.peer
def test_both_halves_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    x = bits_of_odd_floats().view(np.float32)
    x = x[~np.isnan(x)]
    for codec, dtype in ((bfloat16, torch.bfloat16), (float16, torch.float16)):
        theirs = torch.from_numpy(x).to(dtype).to(torch.float32).numpy()
        assert (codec.round_trip(x).view(np.uint32) == theirs.view(np.uint32)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float16_is_numpys_and_what_is_too_large_becomes_infinite_without_a_warning(dtype):
    x = np.array([0, -0.0, 1 / 3, 65504, 65520, -1e30, 1e-8, np.nan, np.inf], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = x.astype(np.float16).astype(dtype)
    np.testing.assert_array_equal(float16.round_trip(x), expected)
    assert np.isinf(expected[4]) and bfloat16.round_trip(x)[5] < -9e29


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda c: c.name)
def test_the_codecs_keep_their_promises_and_say_how_long_the_code_is(codec):
    assert broken_promise(codec) is None
    assert codec.encoded_nbytes(7, 4) == (28 if codec is identity else 14)
    for n in (0, 1, 70_001):
        x = np.linspace(-3, 3, n, dtype=np.float32)
        worst = np.abs(codec.round_trip(x) - x).max(initial=0)
        assert worst <= {"float16": 2**-10, "bfloat16": 2**-7, "identity": 0}[codec.name]


def liar(**promises):
    return Codec(f"liar {promises}", scaled.encoded_nbytes, scaled.encode, scaled.decode,
                 scaled.dtypes, **promises)


def spoils(array, out):
    array[:1] = 0
    scaled.encode(array, out)


@pytest.mark.parametrize("codec, words", [
    (liar(lossless=True), "lossless"), (liar(elementwise=True), "elementwise"),
    (Codec("ever less", lambda n, k: n * k, lambda a, out: np.copyto(out, (a / 2).view(np.uint8)),
           lambda b, a: np.copyto(a, b.view(a.dtype)), idempotent=True), "idempotent"),
    (Codec("spoils", scaled.encoded_nbytes, spoils, scaled.decode, scaled.dtypes), "changes")])
def test_a_promise_that_a_codec_does_not_keep_is_found_before_it_is_relied_on(codec, words):
    with np.errstate(all="ignore"):
        assert words in broken_promise(codec)

        @collective("reduce")
        def to_the_root(rank, size, x, root):
            if rank == root:
                yield [recv_reduce(x, peer, codec=codec) for peer in range(size) if peer != root]
            else:
                yield send(x, root, codec=codec)
        with pytest.raises(VerificationError, match=f"codec {codec.name}.*{words}".replace(
                "{", "{{").replace("{{", "\\{")):
            verify(to_the_root, 2)


# ------------------------------------------------------------------ what the verifier says


def ring_with(codec, owner_rounds=None):
    """The ring whose all-gather is encoded; the owner rounds its chunk "before" or "after" that."""
    @collective("all_reduce")
    def encoded_ring(rank, size, x):
        chunk, right, left = x.split(size), (rank + 1) % size, (rank - 1) % size
        for s in range(size - 1):
            yield send(chunk[rank - s], right), recv_reduce(chunk[rank - s - 1], left)
        mine = chunk[rank + 1]
        if owner_rounds == "before":
            yield copy(mine, mine, codec=codec)
        for s in range(size - 1):
            yield (send(chunk[rank + 1 - s], right, codec=codec),
                   recv(chunk[rank - s], left, codec=codec))
        if owner_rounds == "after":
            yield copy(mine, mine, codec=codec)
    return encoded_ring


@pytest.mark.parametrize("p", [2, 3, 4, 9])
def test_an_owner_that_keeps_full_precision_is_rejected_and_one_that_rounds_is_right(p):
    with pytest.raises(VerificationError) as caught:
        verify(ring_with(float16), p)
    error = str(caught.value)
    assert "does not end with the bits" in error and ": float16(r" in error
    owner = next(line for line in error.splitlines() if ": (r" in line or ": ((" in line)
    assert f"rank {caught.value.rank}:" in owner and "float16" not in owner
    verify(ring_with(float16, "before"), p)
    verify(ring_with(float16, "after"), p)


def test_a_root_that_nobody_wrote_to_is_rejected_naming_who_received_something_else():
    @collective("broadcast")
    def star(rank, size, x, root):
        if rank == root:
            yield [send(x, peer, codec=float16) for peer in range(size) if peer != root]
        else:
            yield recv(x, root, codec=float16)
    with pytest.raises(VerificationError, match=r"root 1: rank 1 does not end(.|\n)*"
                       r"rank 1: r1\n  rank 0: float16\(r1\)\n") as caught:
        verify(star, 3, root=1)
    assert (caught.value.rank, caught.value.round) == (0, 0)


def test_the_one_bit_that_the_verifier_saw_is_there_in_an_execution():
    def job(program):
        x = codec_cases.given(world().rank, 100, np.float32)
        world().all_reduce(x, algorithm=program)
        return x.tobytes()
    assert len(set(run_threads(job, 3, ring_with(float16)))) == 3
    assert len(set(run_threads(job, 3, ring_with(float16, "before")))) == 1


def test_what_is_passed_on_must_survive_a_second_round_trip():
    wears = Codec("wears", float16.encoded_nbytes, float16.encode, float16.decode, float16.dtypes,
                  elementwise=True)
    verify(ring_with(wears, "after"), 2)  # encoded once by all who have it
    for p, owner_rounds in ((2, "before"), (3, "after")):
        with pytest.raises(VerificationError, match=r"wears\(wears\("):
            verify(ring_with(wears, owner_rounds), p)
    verify(ring_with(identity), 5)


def exchange(rounds_first):
    @collective("all_reduce")
    def swap(rank, size, x, scratch):
        there = scratch(len(x))
        if rounds_first:
            yield copy(x, x, codec=float16)
        yield send(x, 1 - rank, codec=float16), recv(there, 1 - rank, codec=float16)
        yield reduce(there, x)
    return swap


def test_a_sum_of_a_rounded_and_an_exact_term_is_another_on_each_side():
    with pytest.raises(VerificationError, match=r"rank 0: \(r0 \+ float16\(r1\)\)"):
        verify(exchange(False), 2)
    verify(exchange(True), 2)


@collective("broadcast")
def cut_otherwise(rank, size, x, root):
    """Rank 2 gets two halves, each with a scale of its own."""
    if rank == root:
        yield [send(x, peer, codec=scaled) for peer in range(size) if peer not in (root, 2)]
        if root != 2:
            yield [send(half, 2, codec=scaled) for half in x.split(2)]
        yield copy(x, x, codec=scaled)
    elif rank == 2:
        yield [recv(half, root, codec=scaled) for half in x.split(2)]
    else:
        yield recv(x, root, codec=scaled)


def test_it_matters_how_chunks_are_cut_if_a_codec_looks_at_neighbours():
    for p in (1, 2, 5):
        verify(scaled_broadcast, p)
    with pytest.raises(VerificationError, match="rank 2 does not end with the bits"):
        verify(cut_otherwise, 4, 6, root=0)
    kept = Codec("kept", scaled.encoded_nbytes, scaled.encode, scaled.decode, scaled.dtypes,
                 idempotent=False)
    assert kept != scaled and Codec("kept", *[lambda: 0] * 3) == kept


def test_ends_of_a_message_with_different_codecs_are_refused_naming_both_lines():
    @collective("broadcast")
    def mixed(rank, size, x, root):
        if rank == root:
            yield [send(x, peer, codec=float16) for peer in range(size) if peer != root]
        else:
            yield recv(x, root, codec=bfloat16)
    first = inspect.getsourcelines(mixed.function)[1]
    with pytest.raises(GraphError) as caught:
        lower(mixed, 2, 4, root=0)
    for word in ("as bfloat16", "as float16", f"{__file__}:{first + 3}", f"{__file__}:{first + 5}"):
        assert word in str(caught.value)
    with pytest.raises(VerificationError, match="as it is"):
        verify(collective("broadcast")(
            lambda rank, size, x, root: iter([[send(x, 1)]] if rank == 0 else
                                             [[recv(x, 0, codec=float16)]])), 2, root=0)


@pytest.mark.parametrize("name", ["ring", "recursive_doubling", "double_binary_tree"])
def test_every_message_of_which_one_end_has_lost_its_codec_is_rejected(name):
    p, n, program = 5, 12, compressed(ALGORITHMS["all_reduce"][name], float16)
    traces = [program.trace(rank, p, n) for rank in range(p)]
    broken = 0
    for rank, trace in enumerate(traces):
        for k, ops in enumerate(trace.rounds):
            for i, op in enumerate(ops):
                if op.peer < 0:
                    continue
                changed = (*ops[:i], op._replace(codec=None), *ops[i + 1:])
                mutant = trace._replace(rounds=(*trace.rounds[:k], changed, *trace.rounds[k + 1:]))
                with pytest.raises(VerificationError, match="as it is") as caught:
                    verify_traces([*traces[:rank], mutant, *traces[rank + 1:]], program.kind, n)
                assert caught.value.rank in (rank, op.peer)
                broken += 1
    assert broken >= 20


def test_what_is_no_codec_is_refused_with_the_line():
    named = collective("broadcast")(
        lambda rank, size, x, root: iter([send(x, 1 - rank, codec="float16")]))
    with pytest.raises(ProgramError, match=r"send: 'float16' is not a Codec \(.*test_codecs.py:"):
        named.trace(0, 2, 4, root=0)


# ------------------------------------------------------------------ compressed programs


@pytest.mark.parametrize("program", SENT, ids=repr)
def test_every_all_reduce_of_messages_is_right_when_it_is_compressed(program):
    for p in (1, 2, 3, 4, 6, 7, 8):
        if program.refusal(p) is None:
            verify(compressed(program, float16), p)
    assert compressed(program, float16).name == f"{program.name}_float16"


@pytest.mark.parametrize("kind", ["all_gather", "broadcast", "reduce_scatter", "reduce", "gather",
                                  "scatter", "all_to_all", "barrier"])
def test_programs_of_other_kinds_can_be_compressed_too(kind):
    for program in ALGORITHMS[kind].values():
        for p in (1, 2, 4, 5):
            if program.refusal(p) is None and program.name != "shared":
                verify(compressed(program, bfloat16), p)


def test_what_sends_nothing_or_changes_on_the_way_cannot_be_compressed():
    with pytest.raises(ValueError, match="shared reads and writes memory of its peers"):
        lower(compressed(ALGORITHMS["all_reduce"]["shared"], float16), 2, 8)
    with pytest.raises(ValueError, match="scale is not idempotent: it would change on the way"):
        compressed(ring, scaled)
    verify(compressed(ALGORITHMS["reduce"]["binomial"], scaled), 5)


def test_compressed_programs_compose():
    for made in (channels(compressed(ring, float16), 2), compressed(channels(ring, 3), float16)):
        verify(made, 4)

    @collective("all_reduce")
    def halves(rank, size, x):
        yield from both(*(compressed(ring, codec)(rank, size, half) for codec, half in
                          zip((float16, bfloat16), x.split(2))))
    verify(halves, 3)


@pytest.mark.parametrize("p", [2, 3, 5])
def test_the_cost_and_the_wire_count_the_encoded_bytes(p, monkeypatch):
    moved, post = [], Threads._post
    monkeypatch.setattr(Threads, "_post", lambda self, message: (
        moved.append(message.array.nbytes * message.sends), post(self, message)))

    def job(program, n, dtype):
        x = codec_cases.given(world().rank, n, dtype)
        plan = world().plan("all_reduce", x, algorithm=program)
        plan.start()
        plan.wait()
    for n, dtype in ((1000, np.float32), (100, np.float64), (p - 1, np.float32), (0, np.float32)):
        itemsize = np.dtype(dtype).itemsize
        for program in (ring, ALGORITHMS["all_reduce"]["recursive_doubling"]):
            small, plain = compressed(program, float16), cost(program, p, n, itemsize)
            moved.clear()
            run_threads(job, p, small, n, dtype)
            price = cost(small, p, n, itemsize)
            assert sum(moved) == price.total == plain.total * 2 // itemsize
            assert (price.messages, price.reduced) == (plain.messages, plain.reduced)
            assert price.betas * itemsize == plain.betas * 2
            assert price.gammas == plain.gammas


@pytest.mark.parametrize("p", range(1, 6))
def test_compressed_programs_run_on_threads(p):
    def job():
        for case in codec_cases.CASES:
            case(world())
    run_threads(job, p)


MPI_PROGRAM = """
import codec_cases
from minipar.comm import world
for case in codec_cases.CASES:
    case(world())
digest = codec_cases.digest(world())
assert digest == world().broadcast_object(digest)
if world().rank == 0:
    print(digest)
"""


def cases_and_digest():
    for case in codec_cases.CASES:
        case(world())
    return codec_cases.digest(world())


def test_compressed_programs_give_the_same_bits_over_mpi_processes_and_threads():
    expected = run_threads(lambda: codec_cases.digest(world()), 3)
    assert launch(cases_and_digest, 3, timeout=60) == expected
    done = mpirun(3, "-c", MPI_PROGRAM)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected[:1] and len(set(expected)) == 1
