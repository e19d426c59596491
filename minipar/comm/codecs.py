"""Codecs: how an operation compresses what it sends.

    yield send(chunk, right, codec=float16), recv_reduce(other, left, codec=float16)

A codec turns elements into bytes and back. How many bytes is known before, so that a plan registers
its buffers once. What comes out of a lossy codec is not what went in: a program whose owner of a
chunk keeps the full precision while others get the decoded one gives ranks different bits, and
`minipar verify` says so. `copy(chunk, chunk, codec=float16)` is the round trip that the owner's
own copy then needs; `compressed` in `compose.py` puts it where it belongs.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable

import numpy as np

BLOCK = 2**16  # elements converted at a time, so that what comes in between stays in the cache


@dataclass(frozen=True)
class Codec:
    """How elements become bytes. Codecs of one name are taken for one: put parameters into it.

    encoded_nbytes: (n, itemsize) -> bytes that n elements of `itemsize` bytes are encoded to.
    encode:         (array, out): array is 1-D of n elements, out uint8 of encoded_nbytes.
    decode:         (buffer, array): of the same shapes; fills `array`.
    dtypes:         the names of the types that it takes; None for every type.
    What it promises, and `broken_promise` looks whether it is so:
    lossless:       what is decoded is what was encoded, bit for bit.
    idempotent:     what is decoded can be encoded and decoded again without a change.
    elementwise:    each element is encoded alone, so that it does not matter how chunks are cut.
    """
    name: str
    encoded_nbytes: Callable = field(compare=False)
    encode: Callable = field(compare=False)
    decode: Callable = field(compare=False)
    dtypes: tuple | None = field(default=None, compare=False)
    lossless: bool = field(default=False, compare=False)
    idempotent: bool = field(default=False, compare=False)
    elementwise: bool = field(default=False, compare=False)

    def check(self, dtype):
        """Raise TypeError if the codec does not take this NumPy type."""
        if self.dtypes is not None and dtype.name not in self.dtypes:
            raise TypeError(f"codec {self.name} encodes {' and '.join(self.dtypes)}, not "
                            f"{dtype.name}")

    def encode_into(self, array, _, out):
        """`encode`, called as a plan calls a reduction."""
        self.encode(array, out)

    def decode_into(self, buffer, _, out):
        """`decode`, called as a plan calls a reduction."""
        self.decode(buffer, out)

    def round_trip(self, array):
        """A new array of what a receiver of `array`, 1-D, gets."""
        out = np.empty_like(array)
        wire = np.empty(self.encoded_nbytes(array.size, array.itemsize), np.uint8)
        self.encode(array, wire)
        self.decode(wire, out)
        return out


def encoded_nbytes(elements, codec, itemsize):
    """The bytes that a chunk or array takes on the wire with `codec`, which may be None."""
    n = len(elements)
    return n * itemsize if codec is None else codec.encoded_nbytes(n, itemsize)


def _encode_float16(array, out):
    with np.errstate(all="ignore"):  # what is above 65,504 becomes infinite
        np.copyto(out.view(np.float16), array, casting="same_kind")


def _decode_float16(buffer, array):
    np.copyto(array, buffer.view(np.float16))


def _encode_bfloat16(array, out):
    """The upper 16 bits of float32, rounded to nearest even; a NaN stays one."""
    out = out.view(np.uint16)
    for i in range(0, array.size, BLOCK):
        with np.errstate(all="ignore"):
            x = array[i:i + BLOCK].astype(np.float32, copy=False)
        bits = x.view(np.uint32)
        upper = bits >> 16
        rounded = (bits + (upper & 1) + np.uint32(0x7FFF)) >> 16
        out[i:i + BLOCK] = np.where(np.isnan(x), upper | np.uint32(0x40), rounded)


def _decode_bfloat16(buffer, array):
    buffer = buffer.view(np.uint16)
    for i in range(0, array.size, BLOCK):
        bits = buffer[i:i + BLOCK].astype(np.uint32) << np.uint32(16)
        array[i:i + BLOCK] = bits.view(np.float32)


def _encode_identity(array, out):
    np.copyto(out, array.view(np.uint8))


def _decode_identity(buffer, array):
    np.copyto(array.view(np.uint8), buffer)


float16 = Codec("float16", lambda n, itemsize: 2 * n, _encode_float16, _decode_float16,
                ("float32", "float64"), idempotent=True, elementwise=True)
bfloat16 = Codec("bfloat16", lambda n, itemsize: 2 * n, _encode_bfloat16, _decode_bfloat16,
                 ("float32", "float64"), idempotent=True, elementwise=True)
identity = Codec("identity", lambda n, itemsize: n * itemsize, _encode_identity,
                 _decode_identity, lossless=True, idempotent=True, elementwise=True)

CODECS = {codec.name: codec for codec in (float16, bfloat16, identity)}


@lru_cache(maxsize=256)
def broken_promise(codec):
    """What a codec promises but does not do, in words; None if nothing is found.

    Tried on random elements and odd ones, of each type that it takes (float32 if it takes all), and
    on cuts of them.
    """
    with np.errstate(all="ignore"):
        for name in codec.dtypes or ("float32",):
            x = _samples(np.dtype(name))
            for part in (x, x[:1], x[:0], x[7:60]):
                sent = part.copy()
                got = codec.round_trip(sent)
                if sent.tobytes() != part.tobytes():
                    return f"its encode changes the {name} that it is given"
                if codec.lossless and not _same(got, part):
                    return f"it is said to be lossless, and is not for {name}"
                if codec.idempotent and not _same(codec.round_trip(got), got):
                    return f"it is said to be idempotent, and a second round trip changes {name}"
                alone = codec.round_trip(part[3:17].copy())
                if codec.elementwise and not _same(got[3:17], alone):
                    return f"it is said to be elementwise, and for {name} the neighbours matter"
    return None


def _samples(dtype):
    rng = np.random.default_rng(754)
    if dtype.kind not in "fc":
        return rng.integers(0, 100, 400).astype(dtype)
    scales = 2.0 ** rng.integers(-20, 12, 400)
    x = (rng.standard_normal(400) * scales).astype(dtype)
    x[100:120:2] = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 65519, 1e-7, 3.0000001]
    return x


def _same(a, b):
    """Whether arrays agree bit by bit, any two NaNs being equal."""
    return bool(((a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}"))
                 | (a != a) & (b != b)).all())
