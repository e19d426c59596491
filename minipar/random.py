"""Random numbers as pure functions of names, so that no result depends on who draws first.

Bottom of the stack. Two uses: initial weights are `generator(seed, name)`, and dropout masks are
`bits(key, ...)`, a counter-based stream of which any rank can compute any stretch by itself.
Both are Philox-4x64-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as
1, 2, 3"), which NumPy has in C.
"""

import hashlib

import numpy as np

LANES = 8  # 32-bit numbers in one counter's block of 4 x 64 bits


def key(*parts):
    """A 128-bit Philox key (int) that is a function of `parts` (numbers and strings) alone."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def generator(*parts):
    """A `numpy.random.Generator` whose stream is a function of `parts` alone."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


class Generator(np.random.Generator):
    """A sequential generator with PyTorch's methods. Every draw moves it on.

    It starts as after manual_seed(0), which is where a rank's own generator starts.
    """

    def __init__(self):
        super().__init__(np.random.Philox(key=0))
        self.manual_seed(0)

    def manual_seed(self, seed):
        """Restart from `seed` (int), as `minipar.manual_seed` restarts the rank's own generator;
        returns the generator.
        """
        self._seed = int(seed)
        self.bit_generator.state = np.random.Philox(key=key(self._seed, "sequential")).state
        return self

    def initial_seed(self):
        """The seed that the generator started from."""
        return self._seed


def bits(key, start, count):
    """`count` uint32 numbers, from index `start` (a multiple of 8) of the stream of `key`.

    Any stretch equals the same stretch of a longer one: the index is the counter.
    """
    if start % LANES:
        raise ValueError(f"a stretch starts at a multiple of {LANES}, not at {start}")
    # 256-bit counter arithmetic needs Python's integers: advance() takes them, counter= may not.
    stream = np.random.Philox(key=key).advance(int(start) // LANES)
    words = -(-int(count) // 2)
    # All 64 bits of integers() without bounds is the raw stream, 1.6 times as fast as random_raw.
    raw = np.random.Generator(stream).integers(0, 2**64 - 1, words, dtype=np.uint64, endpoint=True)
    return raw.astype("<u8", copy=False).view("<u4")[:count]


def state_of(generator):
    """The state of a generator made by `generator()`, as what JSON can hold."""
    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value
    return plain(generator.bit_generator.state)


def from_state(state):
    """The generator with a state that `state_of` has told."""
    made = generator("restored")

    def like(value, model):
        if isinstance(model, dict):
            return {k: like(value[k], model[k]) for k in model}
        return np.array(value, model.dtype) if isinstance(model, np.ndarray) else value
    made.bit_generator.state = like(state, made.bit_generator.state)
    return made
