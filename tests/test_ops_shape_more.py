"""Views, joining, rearranging, masking and indexing. Oracles: differences in float64, PyTorch.

A case is one line: a function of (library, functional, tensors) that runs with both.
"""


import numpy as np
import pytest
from refusals import assert_pytorch_refuses, assert_refused
from gradcheck import gradcheck

import minipar as mp
import minipar.nn.functional as F
from minipar.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("error")
rng = np.random.default_rng(11)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


def layouts(array):
    """The values of `array` in C order, in Fortran order, strided, and with negative strides."""
    yield array
    if array.ndim:
        yield np.asfortranarray(array)
        wide = np.zeros([2 * n for n in array.shape])
        wide[tuple(slice(0, None, 2) for _ in array.shape)] = array
        yield wide[tuple(slice(0, None, 2) for _ in array.shape)]
        back = tuple(slice(None, None, -1) for _ in array.shape)
        yield array[back].copy()[back]


A, ONE, SCALAR, NONE = normal(3, 4), normal(1, 3, 1), normal(), normal(0, 3)
OTHER = normal()
NAN = np.array([[np.nan, 1, np.inf], [-np.inf, 0, 2], [3, np.nan, 4]])
MASK = A > 0
INDEX = np.array([[0, 2, 1, 2], [2, 2, 0, 0]])


def T(values, library, dtype=None):
    """A tensor that takes no gradient, of the library."""
    return (Tensor if library is mp else library.from_numpy)(np.asarray(values, dtype))


# name: (function, arguments: arrays that take gradients)
SAME = {
    "squeeze": (lambda t, f, x: x.squeeze(), ONE), "squeeze 0": (lambda t, f, x: x.squeeze(0), ONE),
    "squeeze dims": (lambda t, f, x: t.squeeze(x, (0, 1, -1)), ONE),
    "squeeze ()": (lambda t, f, x: x.squeeze(()), ONE),
    "squeeze 0-d": (lambda t, f, x: x.squeeze(0).squeeze(-1).squeeze(), SCALAR),
    "squeeze of a larger": (lambda t, f, x: x.squeeze(1), A),
    "unsqueeze 0": (lambda t, f, x: t.unsqueeze(x, 0), A),
    "unsqueeze 2": (lambda t, f, x: x.unsqueeze(2), A),
    "unsqueeze -2": (lambda t, f, x: x.unsqueeze(-2), A),
    "unsqueeze 0-d": (lambda t, f, x: x.unsqueeze(-1), SCALAR),
    "unsqueeze empty": (lambda t, f, x: x.unsqueeze(1), NONE),
    "expand": (lambda t, f, x: x.expand(2, -1, 3, 4), ONE),
    "expand tuple": (lambda t, f, x: x.expand((5, 3, 1)), ONE),
    "expand to itself": (lambda t, f, x: x.expand(3, 4), A),
    "expand to empty": (lambda t, f, x: x.expand(0, 3, 4), ONE),
    "expand 0-d": (lambda t, f, x: x.expand(2, 3), SCALAR),
    "expand ()": (lambda t, f, x: x.expand(()), SCALAR),
    "expand empty": (lambda t, f, x: x.expand(2, 0, 3), NONE),
    "expand_as": (lambda t, f, x, y: x.expand_as(y) * y, normal(4), A),
    "broadcast_to": (lambda t, f, x: t.broadcast_to(x, (2, 3, 4)), A),
    "broadcast_to method": (lambda t, f, x: x.broadcast_to((2, 3, 4)), A),
    "movedim": (lambda t, f, x: t.movedim(x, 0, -1), normal(2, 3, 4)),
    "movedim back": (lambda t, f, x: x.movedim(-1, 0), normal(2, 3, 4)),
    "movedim two": (lambda t, f, x: x.movedim((0, 2), (1, 0)), normal(2, 3, 4)),
    "t": (lambda t, f, x: t.t(x), A), "t 1-d": (lambda t, f, x: x.t(), normal(3)),
    "mT": (lambda t, f, x: x.mT, normal(2, 3, 4)),
    "stack": (lambda t, f, x, y: t.stack([x, y, x]), A, A + 1),
    "stack 1": (lambda t, f, x, y: t.stack((x, y), 1), A, A + 1),
    "stack -1": (lambda t, f, x, y: t.stack((x, y), dim=-1), A, A + 1),
    "stack 0-d": (lambda t, f, x, y: t.stack([x, y]), SCALAR, OTHER),
    "stack empty": (lambda t, f, x: t.stack([x, x], 1), NONE),
    "stack types": (lambda t, f, x: t.stack([x, T(np.ones((3, 4)), t, np.int64)]), A),
    "cat with (0,)": (lambda t, f, x, y: t.cat([y, x, y, x], -1), A, np.empty(0)),
    "cat of (0,)": (lambda t, f, x: t.cat([x, x]), np.empty(0)),
    "chunk": (lambda t, f, x: t.cat([p * (i + 1) for i, p in enumerate(x.chunk(2))]), A),
    "chunk 1": (lambda t, f, x: t.chunk(x, 3, 1)[1], A),
    "chunk of few": (lambda t, f, x: t.cat(x.chunk(7)[::-1]), A),
    "chunk empty": (lambda t, f, x: x.chunk(3)[2], NONE),
    "unbind": (lambda t, f, x: x.unbind()[1] * x.unbind()[0], A),
    "unbind 1": (lambda t, f, x: t.stack(t.unbind(x, 1)[::-1]), A),
    "unbind (0, 3) 1": (lambda t, f, x: x.unbind(1)[2], NONE),
    "repeat": (lambda t, f, x: x.repeat(2, 3), A),
    "repeat tuple": (lambda t, f, x: x.repeat((1, 2)), A),
    "repeat new dims": (lambda t, f, x: x.repeat(2, 1, 3), A),
    "repeat 0": (lambda t, f, x: x.repeat(0, 2), A),
    "repeat 0-d": (lambda t, f, x: x.repeat(3), SCALAR),
    "repeat 0-d ()": (lambda t, f, x: x.repeat(()), SCALAR),
    "repeat empty": (lambda t, f, x: x.repeat(2, 2), NONE),
    "flip 0": (lambda t, f, x: x.flip(0), A), "flip 0, -1": (lambda t, f, x: t.flip(x, (0, -1)), A),
    "flip numbers": (lambda t, f, x: x.flip(0, 2), normal(2, 3, 2)),
    "flip ()": (lambda t, f, x: x.flip(()), A), "flip 0-d": (lambda t, f, x: x.flip(0), SCALAR),
    "flip empty": (lambda t, f, x: x.flip(0, 1), NONE),
    "roll": (lambda t, f, x: x.roll(5), A), "roll 1": (lambda t, f, x: t.roll(x, -1, 1), A),
    "roll two": (lambda t, f, x: x.roll((1, 2), (0, 1)), A),
    "roll one dim twice": (lambda t, f, x: x.roll((1, 1), (0, 0)), A),
    "roll tuple": (lambda t, f, x: x.roll((1,)), A),
    "roll 0-d": (lambda t, f, x: x.roll(1), SCALAR),
    "roll empty": (lambda t, f, x: x.roll(1, 0), NONE),
    "pad": (lambda t, f, x: f.pad(x, (1, 2)), A),
    "pad value": (lambda t, f, x: f.pad(x, [1, 0, 0, 2], value=1.5), A),
    "pad 3 dims": (lambda t, f, x: f.pad(x, (1, 0, 0, 2, 3, 1), "constant", -1), normal(2, 1, 3)),
    "pad cuts": (lambda t, f, x: f.pad(x, (-1, -2, 1, -1)), A),
    "pad cuts and adds": (lambda t, f, x: f.pad(x, (-3, 5)), A),
    "pad to nothing": (lambda t, f, x: f.pad(x, (-2, -2)), A),
    "pad ()": (lambda t, f, x: f.pad(x, ()), A), "pad 0-d": (lambda t, f, x: f.pad(x, ()), SCALAR),
    "pad empty": (lambda t, f, x: f.pad(x, (0, 1, 2, 0), value=3.0), NONE),
    "tril": (lambda t, f, x: x.tril(), A), "triu": (lambda t, f, x: t.triu(x), A),
    "tril 1": (lambda t, f, x: t.tril(x, diagonal=1), A), "triu 2": (lambda t, f, x: x.triu(2), A),
    "tril -2": (lambda t, f, x: x.tril(-2), A), "triu -9": (lambda t, f, x: x.triu(-9), A),
    "triu of a batch": (lambda t, f, x: x.triu(1), normal(2, 3, 3)),
    "tril NaN": (lambda t, f, x: x.tril(), NAN), "triu empty": (lambda t, f, x: x.triu(), NONE),
    "masked_fill": (lambda t, f, x: x.masked_fill(T(MASK, t), -1e3), A),
    "masked_fill inf": (lambda t, f, x: t.masked_fill(x, T(NAN != NAN, t), -np.inf), NAN),
    "masked_fill row": (lambda t, f, x: x.masked_fill(T(MASK[0], t), 2), A),
    "masked_fill larger": (lambda t, f, x: x.masked_fill(T(MASK, t), 0), normal(4)),
    "masked_fill tensor": (lambda t, f, x, y: x.masked_fill(T(MASK, t), y), A, SCALAR),
    "masked_fill 0-d": (lambda t, f, x: x.masked_fill(T(True, t), 3), SCALAR),
    "masked_fill empty": (lambda t, f, x: x.masked_fill(T(np.ones((0, 3), bool), t), 3), NONE),
    "gather": (lambda t, f, x: x.gather(0, T(INDEX, t)), A),
    "gather 1": (lambda t, f, x: t.gather(x, 1, T(INDEX, t)), A),
    "gather one": (lambda t, f, x: x.gather(-1, T(INDEX[:, :1], t)), A),
    "gather int32": (lambda t, f, x: x.gather(1, T(INDEX, t, np.int32)), A),
    "gather nothing": (lambda t, f, x: x.gather(1, T(np.ones((3, 0)), t, np.int64)), A),
    "gather 0-d": (lambda t, f, x: x.gather(0, T(0, t)), SCALAR),
    "gather 0-d thrice": (lambda t, f, x: x.gather(0, T([0, 0, 0], t)), SCALAR),
    "gather at 0-d": (lambda t, f, x: x.gather(0, T(1, t)), normal(3)),
    "take_along_dim": (lambda t, f, x: t.take_along_dim(x, T(INDEX[:, :1], t)[:1], 1), A),
    "take_along_dim x": (lambda t, f, x: x.take_along_dim(T(INDEX - 3, t), dim=1), normal(1, 3)),
    "take_along_dim all": (lambda t, f, x: x.take_along_dim(T(INDEX * 4, t)), A),
    "index_select": (lambda t, f, x: x.index_select(0, T([2, 0, 2], t)), A),
    "index_select 1": (lambda t, f, x: t.index_select(x, -1, T([3, 3], t, np.int32)), A),
    "index_select one": (lambda t, f, x: x.index_select(0, T(1, t)), A),
    "index_select none": (lambda t, f, x: x.index_select(0, T([], t, np.int64)), A),
    "index_select 0-d": (lambda t, f, x: x.index_select(0, T([0], t)), SCALAR),
}


def call(library, functional, function, arguments, dtype):
    """(result, gradients of its sum weighted with 1, 2, ...) as NumPy arrays."""
    if library is mp:
        inputs = [Tensor(np.array(a, dtype), requires_grad=True) for a in arguments]
    else:
        inputs = [library.from_numpy(np.array(a, dtype)).requires_grad_() for a in arguments]
    out = function(library, functional, *inputs)
    weights = np.asarray(np.arange(1, out.numel() + 1).reshape(tuple(out.shape)) % 7 + 1)
    out.backward(T(weights, library, str(out.dtype).split(".")[1]))
    return [out.detach().numpy(), *(t.grad.detach().numpy() for t in inputs)]


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", SAME)
def test_values_gradients_and_types_are_those_of_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    function, *arguments = SAME[name]
    ours = call(mp, F, function, arguments, dtype)
    theirs = call(torch, torch.nn.functional, function, arguments, dtype)
    tolerance = {np.float16: 4e-3, np.float32: 1e-6, np.float64: 1e-14}[dtype]
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.dtype == yours.dtype and mine.shape == yours.shape
        np.testing.assert_allclose(mine, yours, tolerance, tolerance)


@pytest.mark.parametrize("name", [n for n in SAME if not n.endswith((" inf", " NaN"))])
def test_gradients_agree_with_differences_in_every_memory_layout(name):
    function, *arguments = SAME[name]
    for inputs in zip(*map(layouts, arguments)):
        gradcheck(lambda *x: function(mp, F, *x), *inputs)


VIEWS = {
    "squeeze": lambda t, f, x: x[None].squeeze(0), "squeeze nothing": lambda t, f, x: x.squeeze(),
    "unsqueeze": lambda t, f, x: x.unsqueeze(1), "expand": lambda t, f, x: x.expand(2, 3, 4),
    "expand to itself": lambda t, f, x: x.expand(3, 4), "movedim": lambda t, f, x: x.movedim(0, 1),
    "broadcast_to": lambda t, f, x: x.broadcast_to((1, 3, 4)), "mT": lambda t, f, x: x.mT,
    "t": lambda t, f, x: x.t(), "chunk": lambda t, f, x: x.chunk(2)[0],
    "unbind": lambda t, f, x: x.unbind(1)[1], "expand_as": lambda t, f, x: x.expand_as(x),
    "einsum transpose": lambda t, f, x: t.einsum("ij->ji", x),
    "einsum ellipsis": lambda t, f, x: t.einsum("...", x),
    "einsum diagonal": lambda t, f, x: t.einsum("ii->i", x[:, :3]),
    "slice": lambda t, f, x: x[1:, None, 2],
    "stack": lambda t, f, x: t.stack([x]), "cat": lambda t, f, x: t.cat([x]),
    "flip": lambda t, f, x: x.flip(0), "roll": lambda t, f, x: x.roll(0),
    "repeat": lambda t, f, x: x.repeat(1, 1), "tril": lambda t, f, x: x.tril(9),
    "masked_fill": lambda t, f, x: x.masked_fill(x > 99, 0), "True": lambda t, f, x: x[True],
    "pad": lambda t, f, x: f.pad(x, (0, 0)), "pad cuts": lambda t, f, x: f.pad(x, (0, -1)),
    "index_select": lambda t, f, x: x.index_select(0, T([0, 1, 2], t)),
    "gather": lambda t, f, x: x.gather(0, T([[0, 0, 0, 0]], t)),
    "einsum sum": lambda t, f, x: t.einsum("ij->i", x),
    "einsum of one and a number": lambda t, f, x: t.einsum("ij,->ij", x, x[0, 0]),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", VIEWS)
def test_memory_is_shared_where_pytorch_shares_it(name):
    torch = pytest.importorskip("torch")
    x, y = Tensor(A.copy()), torch.from_numpy(A.copy())
    mine, yours = VIEWS[name](mp, F, x), VIEWS[name](torch, torch.nn.functional, y)
    shared = yours.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert (mine.storage is x.storage) == np.shares_memory(mine.array, x.array) == shared
    np.testing.assert_array_equal(mine.array, yours.numpy())


@pytest.mark.parametrize("name", ["squeeze", "unsqueeze", "expand", "movedim", "chunk", "unbind",
                                  "einsum transpose", "einsum diagonal", "expand to itself"])
def test_a_change_of_a_view_or_of_its_base_is_found_in_backward(name):
    for change_base in (True, False):
        x = Tensor(A.copy(), requires_grad=True)
        base = x * 1
        view = VIEWS[name](mp, F, base)
        out = (view * view).sum()
        with mp.no_grad():
            if change_base or not view.array.flags.writeable:
                base.add_(1)
            else:
                view.add_(1)
        with pytest.raises(RuntimeError, match="gradient of mul needs was changed in place"):
            out.backward()


def test_an_expanded_tensor_is_not_changed_in_place():
    x = Tensor(A.copy())
    for change in (lambda y: y.add_(1), lambda y: y.zero_(), lambda y: y.__setitem__(0, 1.0)):
        with pytest.raises(RuntimeError, match=r"shape \(2, 3, 4\) cannot be changed in place"):
            change(x.expand(2, 3, 4))
    assert x.storage.version == 0
    x.expand(1, 3, 4).fill_(2)  # nothing is stretched: an ordinary view
    assert (x.array == 2).all() and x.storage.version == 1


def test_an_operand_of_a_mask_or_an_index_that_changes_before_backward_is_found():
    mask, index = Tensor(MASK.copy()), Tensor(INDEX.copy())
    for changed, function in ((mask, lambda x: x.masked_fill(mask, 0)),
                              (index, lambda x: x.gather(0, index)),
                              (index, lambda x: x.take_along_dim(index, 0)),
                              (index, lambda x: x[index])):
        out = function(Tensor(A, requires_grad=True)).sum()
        changed.fill_(0)
        with pytest.raises(RuntimeError, match="changed in place"):
            out.backward()


# ------------------------------------------------------------------------------------ indexing

X = normal(2, 3, 4, 2)
M = X[0] > 0
INDICES = [
    ([0, 1], slice(None), [0, 3]), ([0, 1], slice(1, None), [0, 3], slice(None, 1)),
    (slice(None), [0, 2], slice(None), [0, 1]), (slice(None), [0, 2], [1, 1], slice(None)),
    (0, slice(None), [1, 1]), ([0, 1], 1, [1, 1]), ([[0], [1]], slice(None), [0, 1, 2]),
    ([[0], [1]], [0, 1, 2]), (..., [0, 1], None, [1, 0]), (None, [0, 0], None, [1, 1], None),
    ([0, 0], ..., [1, 1]), (slice(None), M[..., 0]), (0, M), (0, M[..., 0], [0]),
    (slice(None), np.array([True, False, True]), slice(None), [0, 0]),
    (np.array([False, True]), [0, 1, 0]), M[0, 0, :0].reshape(0) if False else [],
    True, False, (True, [0, 1]), (slice(None), True), (False, 0), (True, True), (0, True, [1, 1]),
    np.array(True), np.array(False), (slice(None), np.array(True), [0, 1]), range(2), ((0, 1),),
    (slice(None), (0, 1), slice(0, 2)), ([[0, 1], [1, 0]], [[0, 0], [0, 0]]),
    (slice(1, 1), [0, 1]), ([], slice(None), []), (np.int64(1), [0, 1], np.array(2)),
    (slice(None, None, 2), 1, [3, 3, 3], ...), ([-1, 0, -2],), (np.array([[1]]), ..., 0),
]


def converted(index, make):
    """`index` with its arrays made into tensors."""
    one = lambda i: make(i) if isinstance(i, np.ndarray) else i  # noqa: E731
    return tuple(map(one, index)) if isinstance(index, tuple) else one(index)


@pytest.mark.peer
@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_an_index_takes_and_sets_what_it_does_in_pytorch(index):
    torch = pytest.importorskip("torch")
    mine = Tensor(X.copy(), requires_grad=True)
    yours = torch.from_numpy(X.copy()).requires_grad_()
    here, there = converted(index, Tensor), converted(index, torch.from_numpy)
    a, b = mine[here], yours[there]
    np.testing.assert_array_equal(a.array, b.detach().numpy())
    weights = np.asarray(rng.standard_normal(a.shape))
    a.backward(Tensor(weights))
    b.backward(torch.from_numpy(weights))
    np.testing.assert_allclose(mine.grad.array, yours.grad.numpy(), atol=1e-14)
    # An element that is named twice gets one of the values: only their being equal is promised.
    values = [3.5, np.full((1, 1, *a.shape[-1:]), 2.5)]
    for value in values if a.ndim else values[:1]:
        mine, yours = Tensor(X.copy()), torch.from_numpy(X.copy())
        mine[here] = Tensor(value) if isinstance(value, np.ndarray) else value
        yours[there] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        np.testing.assert_array_equal(mine.array, yours.numpy())
        assert mine.storage.version == 1


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_the_gradient_of_an_index_agrees_with_differences(index):
    gradcheck(lambda x: x[index], X)
    gradcheck(lambda x: x[index], np.asfortranarray(X))


@pytest.mark.peer
@pytest.mark.parametrize("index, value", [
    (0, A[0]), (slice(None), A[:, :1]), ((slice(None), [0, 0, 3]), 1), (MASK, 7.5),
    (MASK, np.arange(MASK.sum()) * 1.0), ([2, 0], A[:2] * 2), ((slice(1, None), [1, 3]), A[1:, :2]),
    (..., A[::-1].copy()), ((0, 0), 9), (slice(0, 0), 5), (MASK[:, 0], np.ones((1, 1, 4))),
], ids=repr)
def test_setting_stores_values_in_the_places_and_the_type_of_the_tensor(index, value):
    torch = pytest.importorskip("torch")
    for dtype in ("float32", "int64", "bool"):
        mine, yours = Tensor(A.astype(dtype)), torch.from_numpy(A.astype(dtype))
        for library, x in ((mp, mine), (torch, yours)):
            x[converted(index, lambda i: T(i, library))] = (
                T(value, library, dtype) if isinstance(value, np.ndarray) else value)
        np.testing.assert_array_equal(mine.array, yours.numpy())


def test_setting_a_region_from_the_tensor_itself_takes_the_values_from_before():
    x = Tensor(np.arange(5.0))
    x[1:] = x[:-1]
    assert x.tolist() == [0, 0, 1, 2, 3]


def test_setting_is_refused_where_a_gradient_would_have_to_flow():
    x, y = Tensor(A.copy(), requires_grad=True), Tensor(A.copy())
    with pytest.raises(RuntimeError, match="no_grad"):
        x[0] = 1.0
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        y[0] = x[0]
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        y.masked_fill_(Tensor(MASK), x[0, 0])
    with mp.no_grad():
        y[0] = x[1]
    np.testing.assert_array_equal(y.array[0], A[1])


def test_masked_fill_in_place_changes_the_tensor_and_returns_it():
    x = Tensor(A.copy())
    assert x.masked_fill_(Tensor(MASK[0]), mp.tensor(2)) is x and x.storage.version == 1
    np.testing.assert_array_equal(x.array, np.where(MASK[0], 2, A))


def test_a_tensor_of_one_integer_stands_where_python_wants_an_index():
    n = mp.tensor(2)
    assert list(range(n)) == [0, 1] and "abc"[n] == "c" and Tensor(A)[:n].shape == (2, 4)
    assert [1, 2, 3][mp.tensor([1])] == 2
    for x in (mp.tensor(1.0), mp.tensor([1, 2]), mp.tensor(True)):
        with pytest.raises(TypeError, match="an index is an integer tensor"):
            range(x)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["stack", "repeat", "flip 0", "roll", "pad value", "tril",
                                  "masked_fill row", "gather", "index_select", "cat of (0,)",
                                  "expand"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_integers_and_bools_keep_their_type(name, dtype):
    torch = pytest.importorskip("torch")
    function, *arguments = SAME[name]
    arrays = [np.abs(a * 3).astype(dtype) for a in arguments]
    mine = function(mp, F, *map(Tensor, arrays)).array
    yours = function(torch, torch.nn.functional, *map(torch.from_numpy, arrays)).numpy()
    assert mine.dtype == yours.dtype
    np.testing.assert_array_equal(mine, yours)


# ------------------------------------------------------------------------------------ refusals

REFUSED = {  # name: (function of (library, functional, x of (3, 4)), what our message must say)
    "squeeze dim": (lambda t, f, x: x.squeeze(2), "dim 2"),
    "squeeze twice": (lambda t, f, x: x.squeeze((0, -2)), "name one dim twice"),
    "unsqueeze dim": (lambda t, f, x: x.unsqueeze(3), "dim 3"),
    "expand few": (lambda t, f, x: x.expand(4), r"\(3, 4\) cannot become \(4,\)"),
    "expand": (lambda t, f, x: x.expand(6, 4), r"3 != 6 in dim 0"),
    "expand to 0": (lambda t, f, x: x.expand(0, 4), r"3 != 0 in dim 0"),
    "expand -1": (lambda t, f, x: x.expand(-1, 3, 4), "-1 in dim 0"),
    "expand -2": (lambda t, f, x: x.expand(-2, 4), "-2 in dim 0"),
    "movedim twice": (lambda t, f, x: x.movedim((0, 0), (0, 1)), "none twice"),
    "movedim count": (lambda t, f, x: x.movedim((0, 1), 0), "movedim"),
    "movedim dim": (lambda t, f, x: x.movedim(0, 2), "dim 2"),
    "t": (lambda t, f, x: x[None].t(), "more than 2 dims"),
    "mT": (lambda t, f, x: x[0].mT, "2 dims"),
    "stack nothing": (lambda t, f, x: t.stack([]), "no tensors"),
    "stack shapes": (lambda t, f, x: t.stack([x, x[:2]]), r"\(3, 4\) and \(2, 4\)"),
    "stack dim": (lambda t, f, x: t.stack([x], 3), "dim 3"),
    "cat (0, 0)": (lambda t, f, x: t.cat([x[:0, :0], x]), r"\(0, 0\) and \(3, 4\)"),
    "chunk 0": (lambda t, f, x: x.chunk(0), "0 chunks"),
    "chunk 0-d": (lambda t, f, x: x[0, 0].chunk(1), "0-d"),
    "unbind 0-d": (lambda t, f, x: x[0, 0].unbind(), "0-d"),
    "repeat few": (lambda t, f, x: x.repeat(2), r"\(2,\) for shape \(3, 4\)"),
    "repeat -1": (lambda t, f, x: x.repeat(-1, 1), ">= 0"),
    "flip twice": (lambda t, f, x: x.flip(0, -2), "name one dim twice"),
    "flip dim": (lambda t, f, x: x.flip(2), "dim 2"),
    "roll count": (lambda t, f, x: x.roll((1, 2), 0), "one shift for each"),
    "roll no dims": (lambda t, f, x: x.roll((1, 2)), "one shift for each"),
    "roll nothing": (lambda t, f, x: x.roll((), ()), "one shift for each"),
    "roll 0-d": (lambda t, f, x: x[0, 0].roll(1, 0), None),
    "pad odd": (lambda t, f, x: f.pad(x, (1,)), r"\(1,\) for shape \(3, 4\)"),
    "pad too many": (lambda t, f, x: f.pad(x, (1,) * 6), "at most 4"),
    "pad below 0": (lambda t, f, x: f.pad(x, (-3, -2)), r"4 - 3 - 2 < 0 in dim 1"),
    "pad below 0, then more": (lambda t, f, x: f.pad(x, (-5, 9)), r"4 - 5 - 0 < 0 in dim 1"),
    "pad mode": (lambda t, f, x: f.pad(x, (1, 1), mode="x"), "'x'"),
    "tril": (lambda t, f, x: x[0].tril(), "fewer than 2"),
    "triu": (lambda t, f, x: x[0, 0].triu(), "fewer than 2"),
    "mask of integers": (lambda t, f, x: x.masked_fill(x.long(), 0), "bools, not minipar.int64"),
    "mask shape": (lambda t, f, x: x.masked_fill(x[:2] > 0, 0), r"\(3, 4\) and mask \(2, 4\)"),
    "mask value": (lambda t, f, x: x.masked_fill(x > 0, x[0]), r"0-d tensor, not of shape \(4,\)"),
    "masked_fill_ shape": (lambda t, f, x: x[0].masked_fill_(x > 0, 0), r"mask \(3, 4\)"),
    "gather dims": (lambda t, f, x: x.gather(0, t.tensor([0])), "number of dims"),
    "gather -1": (lambda t, f, x: x.gather(0, t.tensor([[-1]])), "index -1 is not in dim 0"),
    "gather 3": (lambda t, f, x: x.gather(0, t.tensor([[3]])), r"index 3 .* \(3, 4\), 0 to 2"),
    "gather size": (lambda t, f, x: x.gather(0, t.tensor([[0] * 5])), "5 > 4 in dim 1"),
    "gather type": (lambda t, f, x: x.gather(0, x), "int32 or int64, not minipar.float64"),
    "take_along_dim": (lambda t, f, x: t.take_along_dim(x, t.tensor([[0], [1]]), 1), "broadcast"),
    "take_along_dim dims": (lambda t, f, x: t.take_along_dim(x, t.tensor([0]), 1),
        "number of dims"),
    "masked_fill range": (lambda t, f, x: x.to(t.uint8).masked_fill(x > 0, 256),
        "256 does not fit"),
    "index_select -1": (lambda t, f, x: x.index_select(0, t.tensor([-1])), "index -1 is not"),
    "index_select 4": (lambda t, f, x: x.index_select(1, t.tensor([4])), "0 to 3"),
    "index_select 2-d": (lambda t, f, x: x.index_select(0, t.tensor([[1]])), r"\(1, 1\)"),
    "index_select 0-d": (lambda t, f, x: x[0, 0].index_select(0, t.tensor([0, 0])), r"\(2,\)"),
    "set shape": (lambda t, f, x: x.__setitem__(0, t.tensor([1.0, 2.0])),
        r"shape \(2,\) cannot be broadcast to the \(4,\) that the index takes of \(3, 4\)"),
    "set by mask": (lambda t, f, x: x.__setitem__(x == x, t.tensor([1.0, 2.0])),
        r"\(2,\) cannot be broadcast to the \(12,\)"),
    "set by mask 2-d": (lambda t, f, x: x.__setitem__(x == x, x), r"the \(12,\)"),
    "set step": (lambda t, f, x: x.__setitem__(slice(None, None, -1), 0.0), "step"),
    "set out": (lambda t, f, x: x.__setitem__([0, 3], 0.0), "3"),
    "index NumPy bool": (lambda t, f, x: x[np.bool_(True)], "not of bool"),
    "index float tensor": (lambda t, f, x: x[t.tensor([1.0])], "not float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_input_is_refused_in_words(name):
    function, message = REFUSED[name]
    assert_refused(lambda: function(mp, F, Tensor(A.copy())), message)


@pytest.mark.peer
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_pytorch_too(name):
    assert_pytorch_refuses(REFUSED[name][0], A.copy())


def test_an_index_that_means_two_things_to_numpy_and_pytorch_is_refused():
    with pytest.raises(IndexError, match="a list of lists"):
        Tensor(A)[[[0, 1], [1, 0]]]
    with pytest.raises(IndexError, match="signed integers or bools, not uint8"):
        Tensor(A)[mp.tensor([1, 0, 1], dtype="uint8")]
