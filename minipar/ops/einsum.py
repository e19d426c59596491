"""Einstein summation, as matrix products of two operands at a time.

A label is a letter of the equation, or a negative int for a dim that an ellipsis stands for: -1 the
last one. A part is (labels, array): an array of which each dim has a label, none of them twice.
"""

import math
from itertools import combinations

import numpy as np

from ..device import as_array
from ..tensor import record
from .precision import arithmetic, autocasts

_ALL = slice(None)


@autocasts("low")
@arithmetic
def einsum(equation, *operands):
    """The product of the operands, summed over the indices that the output has not.

    equation: "bij,bjk->bik" is a batched matrix product; "ij,ij" sums over all; "ii->i" takes a
    diagonal; "...ij->...ji" transposes matrices of any batch. Without "->" the output has the
    ellipsis and the letters that occur once, in alphabetical order. Dims of size 1 are broadcast.
    operands: tensors of one type of numbers, or one list of them. One operand gives a view if
    nothing is summed. The gradient of an einsum is an einsum of the others and the output's.
    Raises TypeError if the types differ, and ValueError, with the equation:
    `einsum 'ij,jk->ik': index j is 4 in operand 0 of shape (3, 4), but 5 in operand 1 of shape
    (5, 6)`.
    """
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = operands[0]
    arrays = [t.array for t in operands]
    if len({a.dtype for a in arrays}) != 1 or len(arrays) > 1 and arrays[0].dtype == bool:
        raise TypeError(f"einsum {equation!r}: the operands need one type of numbers, not "
                        f"{', '.join(str(a.dtype) for a in arrays) or 'none'}")
    shapes = [a.shape for a in arrays]
    terms, out_labels = _parse(equation, shapes)
    sizes = _sizes(equation, terms, shapes)
    parts = [_part(term, a, sizes) for term, a in zip(terms, arrays)]
    out = _contract(parts, out_labels)
    wants = [t.requires_grad for t in operands]
    if sum(wants) == 1:  # what backward will not read is not kept for it
        parts[wants.index(True)] = (parts[wants.index(True)][0], None)
    view_of = operands[0] if len(arrays) == 1 and np.may_share_memory(out, arrays[0]) else None
    del arrays

    def backward(g):
        def one(i):
            others = [(out_labels, g), *parts[:i], *parts[i + 1:]]
            labels = [n for n in parts[i][0] if any(n in part[0] for part in others)]
            return _restore(_contract(others, labels), labels, terms[i], shapes[i])
        return tuple([one(i) if want else None for i, want in enumerate(wants)])
    saved = [t for i, t in enumerate(operands) if any(wants[:i] + wants[i + 1:])]
    return record(out, operands, backward, saved, view_of)


def _parse(equation, shapes):
    """(labels of each operand, labels of the output), or ValueError."""
    def wrong(text):
        return ValueError(f"einsum {equation!r}: {text}")
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    texts = inputs.split(",")
    if len(texts) != len(shapes):
        raise wrong(f"it names {len(texts)} operands, there are {len(shapes)}")
    for text in (*texts, output):
        letters = text.replace("...", "", 1)
        if letters and not (letters.isascii() and letters.isalpha()):
            raise wrong(f"{text!r} is not made of letters and at most one ellipsis")
    terms = []
    for i, (text, shape) in enumerate(zip(texts, shapes)):
        hidden = len(shape) - len(text.replace("...", ""))
        if hidden < 0 or hidden and "..." not in text:
            raise wrong(f"{text!r} names {len(shape) - hidden} dims, operand {i} has the shape "
                        f"{shape}")
        terms.append(_labels(text, hidden))
    every = [label for term in terms for label in term]
    most = -min((n for n in every if isinstance(n, int)), default=0)
    if not arrow:
        output = "..." + "".join(sorted(n for n in inputs.replace(".", "").replace(",", "")
                                        if every.count(n) == 1))
    out_labels = _labels(output, most)
    for label in out_labels:
        if out_labels.count(label) > 1 or label not in every:
            raise wrong(f"index {label} of the output occurs in it twice, or in no operand")
    return terms, out_labels


def _labels(text, hidden):
    """The labels of "i...j", where the ellipsis stands for `hidden` dims."""
    before, _, after = text.partition("...")
    return (*before, *(range(-hidden, 0) if "..." in text else ()), *after)


def _sizes(equation, terms, shapes):
    """{label: size}, or ValueError if two sizes of a label are neither equal nor 1."""
    found = {}  # label: (size, operand)
    for i, (term, shape) in enumerate(zip(terms, shapes)):
        own = {}
        for label, n in zip(term, shape):
            old, where = (own[label], i) if label in own else found.get(label, (1, i))
            if n != old and (label in own or 1 not in (n, old)):
                name = "index" if isinstance(label, str) else "the ellipsis' dim"
                raise ValueError(f"einsum {equation!r}: {name} {label} is {old} in operand {where} "
                                 f"of shape {shapes[where]}, but {n} in operand {i} of shape "
                                 f"{shape}")
            own[label] = n
            if found.get(label, (1, i))[0] == 1:
                found[label] = n, i
    return {label: n for label, (n, _) in found.items()}


def _part(term, array, sizes):
    """An operand with repeated labels taken along the diagonal, and without dims that are
    broadcast: those only multiply.
    """
    labels = tuple(dict.fromkeys(term))
    if len(labels) < len(term):
        array = _diagonal(array, term, labels)
    index = tuple(0 if n == 1 != sizes[label] else _ALL for label, n in zip(labels, array.shape))
    return tuple(label for label, i in zip(labels, index) if i is _ALL), array[(*index, ...)]


def _diagonal(array, term, labels):
    """The view of `array` in which labels that `term` repeats advance together."""
    return np.einsum(array, [labels.index(n) for n in term], [*range(len(labels))])


def _contract(parts, out_labels):
    """The array with `out_labels` of the product of the parts. Smallest intermediates first."""
    parts = [(tuple(labels), a) for labels, a in parts]
    while len(parts) > 1:
        def growth(pair):
            others = [labels for k, (labels, _) in enumerate(parts) if k not in pair]
            (one, a), (two, b) = (parts[k] for k in pair)
            sizes = dict(zip(one + two, a.shape + b.shape))
            left = {n for n in sizes if n in out_labels or any(n in labels for labels in others)}
            return math.prod(sizes[n] for n in left) - a.size - b.size
        i, j = min(combinations(range(len(parts)), 2), key=growth)
        rest = [part for k, part in enumerate(parts) if k not in (i, j)]
        keep = {*out_labels, *(n for labels, _ in rest for n in labels)}
        parts = [*rest, _multiply(parts[i], parts[j], keep)]
    labels, a = _sum_out(parts[0], out_labels)
    return a.transpose([labels.index(n) for n in out_labels])


def _sum_out(part, keep):
    """The part summed over the labels that are not in `keep`."""
    labels, a = part
    axes = tuple(d for d, label in enumerate(labels) if label not in keep)
    if axes:
        a = as_array(a.sum(axis=axes)).astype(
            a.dtype if a.dtype.kind == "f" else np.int64, copy=False)
    return tuple(label for label in labels if label in keep), a


def _multiply(one, two, keep):
    """The product of two parts, summed over labels not in `keep`: one batched matrix product.

    Labels of both that are kept make the batch, those of both that are summed the inner dims,
    those of one the rows or columns.
    """
    labels_a, a = _sum_out(one, keep | {*two[0]})
    labels_b, b = _sum_out(two, keep | {*labels_a})
    batch = [n for n in labels_a if n in labels_b and n in keep]
    inner = [n for n in labels_a if n in labels_b and n not in keep]
    rows = [n for n in labels_a if n not in labels_b]
    columns = [n for n in labels_b if n not in labels_a]
    sizes = dict(zip(labels_a + labels_b, a.shape + b.shape))

    def size(labels):
        return tuple(sizes[n] for n in labels)
    a = a.transpose([labels_a.index(n) for n in batch + rows + inner])
    b = b.transpose([labels_b.index(n) for n in batch + inner + columns])
    if inner:
        many, k = size(batch), math.prod(size(inner))
        out = np.matmul(a.reshape(*many, math.prod(size(rows)), k),
                        b.reshape(*many, k, math.prod(size(columns))))
    else:  # nothing is summed: elementwise
        out = (a.reshape(size(batch) + size(rows) + (1,) * len(columns))
               * b.reshape(size(batch) + (1,) * len(rows) + size(columns)))
    labels = (*batch, *rows, *columns)
    return labels, out.reshape(size(labels))


def _restore(g, labels, term, shape):
    """The gradient of an operand from that of some of its labels; the same along the others."""
    every = tuple(dict.fromkeys(term))
    own = dict(zip(term, shape))
    g = g.transpose([labels.index(n) for n in every if n in labels])
    g = g[tuple(_ALL if n in labels else None for n in every)]
    g = np.broadcast_to(g, [own[n] for n in every])
    if len(every) == len(term):
        return g
    gx = np.zeros(shape, g.dtype, like=g)
    _diagonal(gx, term, every)[...] = g
    return gx
