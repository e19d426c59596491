"""The sum of arrays over all ranks, exact: the true sum of their terms, rounded once.

Floating-point addition rounds, so a sum depends on the order of its terms. Integers do not round,
so here each term becomes a whole number of units, of 2^-s, and integers are added:

    1. an all-reduce, "max": for each element the exponents of its largest and its smallest term;
    2. s is such that the largest term is below 2^bits units. With V terms on all ranks
       V 2^bits < 2^63: an int64, the "word", holds every sum of them;
    3. each rank adds its terms in units, and an all-reduce, "sum", adds the words;
    4. for elements whose smallest term has digits below the unit, what is left of the terms goes
       the same way in units of 2^-(s + bits), and so on until nothing is left;
    5. the words of an element, one number of so many digits, are rounded to the nearest float.

Any all-reduce serves: integers add to the same sum in every order. An element has its own
exponents, not those of a block, for what stands beside it may be larger by any factor: with a
common unit the small ones would need more words. In float32 one word is enough while the terms of
an element differ by less than a factor of 2^(bits - 24), for 16 terms 2^34, so nearly always. A
float64 has 53 digits itself and takes two words as a rule.

Sent, in units of an all-reduce of float32 gradients: 1/2 for exponents, 2 for a word. Demmel and
Nguyen 2015, "Parallel reproducible summation", also begin with the maximum, but keep a fixed number
of digits below it; here all are kept.
"""

import numpy as np

CHUNK = 1 << 14  # elements that are worked on at a time: they stay in the cache


def chunks(n):
    """Slices of n elements, in order."""
    return [slice(at, min(at + CHUNK, n)) for at in range(0, n, CHUNK)]


class ExactSum:
    """Sums of 1-D arrays over the ranks of `comm`: each rank gives some, all get the total.

    n:         elements of an array. dtype: float32 or float64.
    terms:     how many arrays all ranks together give at most, >= 1.
    algorithm: of the all-reduces: "auto", a name, or a program.
    bits:      digits of a term that go into a word.
    Memory: n elements for each array that this rank gives, 8 n bytes for words, and 2 n (float32)
    or 4 n bytes for exponents. Raises TypeError for another dtype. Collective.
    """

    def __init__(self, comm, n, dtype, terms, algorithm="auto"):
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise TypeError(f"exact sums are of float32 and float64, not of {self.dtype}")
        info = np.finfo(self.dtype)
        self._comm, self._terms, self._algorithm = comm, terms, algorithm
        self.bits = 63 - terms.bit_length()
        self._unsigned = np.dtype(f"u{self.dtype.itemsize}")
        self._digits, self._special = info.nmant, 2 ** info.iexp - 1  # the exponent field of inf
        self._magnitude = self._unsigned.type(2 ** (8 * self.dtype.itemsize - 1) - 1)
        fields = np.maximum(np.arange(self._special + 1), 1)  # 0, of subnormals, counts as 1
        self._units = self.bits + info.maxexp - 2 - fields  # s of each field: 2^bits units
        self._rows, self._given, self._scales = [], 0, {}  # are the power of two above it

        shared = comm.size > 1 and algorithm in ("auto", "shared")
        empty = comm.empty if shared else np.empty
        small = np.uint8 if info.iexp <= 8 else np.uint16
        self._fields = empty((2, n), small)
        self._words = empty(n + 1, np.int64)
        self._largest = comm.plan("all_reduce", self._fields, "max", algorithm)
        self._sum = comm.plan("all_reduce", self._words, "sum", algorithm)

    @property
    def nbytes(self):
        """Bytes that it holds on this rank."""
        return sum(array.nbytes for array in (*self._rows, self._fields, self._words))

    def add(self, array):
        """Give one more term, (n,), which is copied."""
        if self._given == len(self._rows):
            self._rows.append(np.empty(len(self._words) - 1, self.dtype))
        self._rows[self._given][...] = array
        self._given += 1

    def reduce(self, out):
        """Write the sum of all ranks' terms into `out`, (n,), and forget them. Collective.

        It is the float nearest to the true sum, of two equally near the even one; inf if that is
        beyond the largest; NaN where a term is not finite. The sum of no terms is 0, and no zero is
        negative. Raises OverflowError if there were more terms than `terms`.
        """
        with np.errstate(all="ignore"):  # of infinities, until they are NaN
            self._find_fields()
            self._run(self._largest)
            top = self._fields[0]
            words = self._words[:-1]
            self._in_units(0, slice(0, len(words)), words)
            self._words[-1] = self._given
            self._run(self._sum)
            if self._words[-1] > self._terms:
                raise OverflowError(f"{self._words[-1]} terms in a sum with room for {self._terms}")
            for at in chunks(len(words)):
                out[at] = _times(words[at].astype(self.dtype), self._scale(0, top[at])[1])
            self._sum_the_rest(out)
            out[top == self._special] = np.nan
        self._given = 0

    def _run(self, plan):
        plan.start()
        plan.wait()

    def _find_fields(self):
        """For each element the largest exponent field, and the smallest (of terms other than 0) as
        its distance from the highest there is: both are of the kind that a maximum unites.
        """
        zero, most = self._unsigned.type(0), ~self._unsigned.type(0)
        top, low, bits = (np.empty(CHUNK, self._unsigned) for _ in range(3))
        for at in chunks(self._fields.shape[1]):
            k = at.stop - at.start
            top[:k], low[:k] = zero, most
            for row in self._rows[:self._given]:
                # Without its sign a float is ordered as the integer of the same bits is.
                np.bitwise_and(row[at].view(self._unsigned), self._magnitude, out=bits[:k])
                np.maximum(top[:k], bits[:k], out=top[:k])
                np.subtract(bits[:k], 1, out=bits[:k])  # of 0, which is no term: the largest
                np.minimum(low[:k], bits[:k], out=low[:k])
            self._fields[0, at] = top[:k] >> self._digits
            lowest = np.minimum(low[:k] >> self._digits, self._special)
            self._fields[1, at] = self._special - lowest

    def _scale(self, level, top):
        """(factors to the units of a level, factors back), each of them one for each element, for
        exponent fields `top`. Of float64 two are multiplied: one could be beyond its range.
        """
        if level not in self._scales:
            s = self._units + level * self.bits
            parts = (s,) if self.dtype == np.float32 else (s // 2, s - s // 2)
            self._scales[level] = tuple([np.ldexp(1.0, sign * part) for part in parts]
                                        for sign in (1, -1))
        return tuple([factor.take(top) for factor in way] for way in self._scales[level])

    def _in_units(self, level, where, out):
        """Write into `out` the sum of this rank's terms in units of a level: of each what the
        levels above leave, without the fraction, which is the next level's.

        where: the elements, a slice or an array of indices.
        """
        out[...] = 0
        term, digits = np.empty(CHUNK), np.empty(CHUNK, np.int64)
        whole = isinstance(where, slice)
        for at in chunks(len(out)):
            k = at.stop - at.start
            some = at if whole else where[at]
            top, rest, word = self._fields[0, some], term[:k], digits[:k]
            above = [self._scale(i, top) for i in range(level)]
            here, _ = self._scale(level, top)
            for row in self._rows[:self._given]:
                np.copyto(rest, row[some])
                for up, down in above:
                    rest -= _times(np.trunc(_times(rest, up)), down)
                for factor in here:
                    np.multiply(rest, factor, out=rest)
                np.copyto(word, rest, casting="unsafe")  # towards 0
                out[at] += word

    def _sum_the_rest(self, out):
        """Elements with digits below the unit: what is left of them, and all of it rounded."""
        top, low = (np.maximum(f.astype(np.int64), 1)
                    for f in (self._fields[0], self._special - self._fields[1].astype(np.int64)))
        span = top + 1 - low + self._digits  # from above the largest term to the smallest's end
        span[self._fields[0] == self._special] = 0
        wide = np.flatnonzero(span > self.bits)
        if not wide.size:
            return
        span = span[wide]
        words = np.zeros((-(-int(span.max()) // self.bits), len(wide)), np.int64)
        words[0] = self._words[wide]
        for level in range(1, len(words)):
            more = np.flatnonzero(span > level * self.bits)
            # Of few lengths: plans in shared memory are kept for each.
            padded = np.zeros(1 << (len(more) - 1).bit_length(), np.int64)
            self._in_units(level, wide[more], padded[:len(more)])
            self._comm.all_reduce(padded, algorithm=self._algorithm)
            words[level, more] = padded[:len(more)]
        head, shift = nearest(words, self.bits, self.dtype)
        out[wide] = np.ldexp(head, -self._units[self._fields[0, wide]] - shift)


def _times(array, factors):
    for factor in factors:
        array = array * factor
    return array


def nearest(words, bits, dtype):
    """Numbers of several words rounded to `dtype`: (float64 array (m,), shift), each of them
    head 2^-shift.

    words: int64 (k, m); a number is the sum of words[j] 2^(-bits j), below 2^63 in magnitude.
    """
    words = words.copy()
    _carry(words, bits)
    sign = np.where(words[0] < 0, -1, 1)
    words *= sign
    _carry(words, bits)  # now all are >= 0, and all but the first below 2^bits
    head, shift = words[0], np.zeros(words.shape[1], np.int64)
    takes, lost = np.ones(head.shape, bool), np.zeros(head.shape, bool)
    for word in words[1:]:
        room = 62 - np.frexp(head.astype(np.float64))[1]  # what it can take more, or 1 less
        take = np.where(takes, np.clip(room, 0, bits), 0)
        head = head << take | word >> (bits - take)
        lost |= word & ((np.int64(1) << (bits - take)) - 1) != 0
        shift += take
        takes &= take == bits
    # With 61 digits or more, a last one for all that are lost decides between two floats rightly.
    return (sign * (head | lost)).astype(dtype).astype(np.float64), shift


def _carry(words, bits):
    """Have words[1:] in [0, 2^bits), of the same number."""
    for j in range(len(words) - 1, 0, -1):
        over = words[j] >> bits
        words[j] -= over << bits
        words[j - 1] += over
