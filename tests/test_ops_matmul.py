"""Matrix products and einsum over grids of shapes. Oracles: differences in float64, PyTorch."""

import gc
import warnings
import weakref

import numpy as np
import pytest
from gradcheck import gradcheck

import minipar as mp
from minipar.tensor import Tensor, backward

pytestmark = pytest.mark.filterwarnings("error")
rng = np.random.default_rng(5)


def normal(shape):
    return np.asarray(rng.standard_normal(shape))


def same_as_pytorch(torch, function, arrays, tolerance):
    """Assert that values, gradients, types and shapes of function(library, *tensors) agree."""
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    mine, yours = function(mp, *ours), function(torch, *theirs)
    weights = normal(mine.shape).astype(mine.array.dtype)
    mine.backward(Tensor(weights))
    yours.backward(torch.from_numpy(weights))
    pairs = [(mine, yours), *((a.grad, b.grad) for a, b in zip(ours, theirs))]
    for a, b in pairs:
        a, b = a.array, b.detach().numpy()
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, tolerance, tolerance)


# left (..., m, 3) and right (..., 3, n)
LEFT = [(3,), (2, 3), (1, 3), (0, 3), (5, 2, 3), (1, 2, 3), (4, 1, 2, 3), (4, 5, 1, 3), (0, 2, 3)]
RIGHT = [(3,), (3, 2), (3, 1), (3, 0), (5, 3, 2), (1, 3, 4), (4, 5, 3, 2), (4, 1, 3, 1), (5, 3, 0)]


def together(left, right):
    try:
        np.broadcast_shapes(left[:-2], right[:-2])
    except ValueError:
        return False
    return True


@pytest.mark.peer
@pytest.mark.parametrize("right", RIGHT, ids=str)
@pytest.mark.parametrize("left", LEFT, ids=str)
def test_matmul_of_any_two_shapes_is_that_of_pytorch(left, right):
    torch = pytest.importorskip("torch")
    if not together(left, right):
        with pytest.raises(ValueError, match="batch shapes .* cannot be broadcast"):
            mp.matmul(Tensor(normal(left)), Tensor(normal(right)))
        return
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-5), ("float16", 1e-2)):
        same_as_pytorch(torch, lambda t, x, y: t.matmul(x, y),
                        [normal(left).astype(dtype), normal(right).astype(dtype)], tolerance)


@pytest.mark.parametrize("right", RIGHT, ids=str)
@pytest.mark.parametrize("left", LEFT, ids=str)
def test_the_gradient_of_matmul_agrees_with_differences_in_any_layout(left, right):
    if not together(left, right):
        return
    a, b = normal(left), normal(right)
    gradcheck(mp.matmul, a, b)
    gradcheck(mp.matmul, np.asfortranarray(a), normal(right[::-1]).transpose()[..., ::-1])
    gradcheck(lambda x: x @ Tensor(b), a)
    gradcheck(lambda y: Tensor(a) @ y, b)


@pytest.mark.peer
@pytest.mark.parametrize("values", [np.nan, np.inf])
def test_nan_and_infinity_pass_through_a_product_as_in_pytorch(values):
    torch = pytest.importorskip("torch")
    a = np.array([[values, 0, 1], [1, 2, 3]])
    for shape in ((3,), (3, 2), (2, 3, 2)):
        b = normal(shape)
        mine, yours = mp.matmul(Tensor(a), Tensor(b)), torch.from_numpy(a) @ torch.from_numpy(b)
        np.testing.assert_allclose(mine.array, yours.numpy(), 1e-13)


@pytest.mark.parametrize("array", [
    np.full((3, 3), 6e4, np.float16), np.full((2, 2), 1e308), np.full((40, 40), 3e38, np.float32),
    np.array([[np.inf, 0], [0, -np.inf]])], ids=lambda a: a.dtype.name)
def test_overflow_in_a_product_is_infinity_or_nan_without_a_warning(array):
    x = Tensor(array)
    for out in (x @ x, x @ x[None], x @ x[0], mp.linear(x, x), mp.einsum("ij,jk->ik", x, x),
                mp.einsum("ij,ij->ij", x, x), mp.einsum("ij->", x)):
        assert not np.isfinite(out.array).all()


def test_the_weight_gradient_of_a_product_can_be_postponed_and_goes_straight_into_the_sink():
    x, w = Tensor(normal((2, 5, 3))), Tensor(normal((3, 4)), requires_grad=True)
    out, later = x @ w, []
    g = normal(out.shape)
    backward([out], [g], postponed=later)
    assert w.grad is None and len(later) == 1
    later[0]()
    np.testing.assert_allclose(w.grad.array, np.einsum("bij,bik->jk", x.array, g))


def test_mm_and_bmm_are_matmul_for_their_number_of_dims():
    a, b = Tensor(normal((2, 3))), Tensor(normal((3, 4)))
    np.testing.assert_array_equal(mp.mm(a, b).array, (a @ b).array)
    np.testing.assert_array_equal(mp.bmm(a[None], b[None]).array, (a @ b).array[None])


# ---------------------------------------------------------------------------------- einsum

EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)), ("ij,kj->ki", (2, 3), (4, 3)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 1, 5)),
    ("bij,jk->bik", (2, 3, 4), (4, 5)), ("ijk,ilm,njm->nkl", (2, 3, 4), (2, 5, 6), (3, 3, 6)),
    ("i,j->ij", (3,), (4,)), ("i,j->ji", (3,), (4,)), ("i,i", (3,), (3,)), ("i,i->i", (3,), (3,)),
    ("ij,ij->ij", (2, 3), (2, 3)), ("ij,ji->ij", (2, 3), (3, 2)), ("ij,ij->", (2, 3), (2, 3)),
    ("ij,j->i", (2, 3), (3,)), ("ij->ji", (2, 3)), ("ij->", (2, 3)), ("ij->i", (2, 3)),
    ("ij->j", (2, 3)), ("ba", (2, 3)), ("bA", (2, 3)), ("ij", (2, 3)), ("", ()), ("->", ()),
    ("i->i", (0,)), ("i->", (0,)), ("ij,jk->ik", (2, 0), (0, 3)), ("ij,jk->ik", (0, 2), (2, 3)),
    ("ii->i", (3, 3)), ("ii", (3, 3)), ("ii->", (1, 1)), ("iij->j", (2, 2, 3)),
    ("iji->ij", (2, 3, 2)), ("iii->i", (2, 2, 2)), ("ii,i->i", (3, 3), (3,)),
    ("ii,jj->ij", (2, 2), (3, 3)), ("iij,jk->ik", (2, 2, 3), (3, 4)), ("bii,bi", (2, 3, 3), (2, 3)),
    ("...ij,...jk->...ik", (2, 3, 4), (4, 5)), ("...ij,...jk", (2, 1, 3, 4), (5, 4, 2)),
    ("...i,...i->...", (2, 3), (2, 3)), ("...i,i->...", (2, 1, 3), (3,)), ("...", (2, 3)),
    ("i...->...i", (2, 3, 4)), ("...j->j", (2, 3)), ("ij->...ij", (2, 3)), ("ij...->ji", (2, 3)),
    ("b...i,...ij->b...j", (2, 5, 3), (5, 3, 4)), ("i...,j...->ij...", (2, 3), (4, 3)),
    ("...ii->...i", (2, 3, 3)), ("...,...->...", (2, 1), (3,)), (",...->...", (), (2, 3)),
    (",", (), ()), (",i->i", (), (3,)), (",,->", (), (), ()), ("i,->", (3,), ()),
    ("ij,jk->ik", (2, 1), (3, 4)), ("ij,ij->ij", (1, 3), (2, 3)), ("ij,ij->j", (1, 3), (2, 3)),
    ("ij,ij->", (1, 3), (2, 1)), ("bij,bjk->bik", (1, 2, 3), (4, 3, 2)),
    ("ii,i->i", (1, 1), (3,)), ("i,ii->i", (3,), (1, 1)),
    ("a,b,c->abc", (2,), (3,), (4,)), ("ab,bc,cd,de->ae", (2, 3), (3, 4), (4, 5), (5, 2)),
    ("ab,b,bc->ac", (2, 3), (3,), (3, 4)), ("i,i,i,i->i", (3,), (3,), (3,), (3,)),
    ("ij,kl->i", (2, 3), (4, 5)), ("ij,kl->", (2, 3), (0, 5)),
    (" i j , j k -> k i ", (2, 3), (3, 4)),
    ("nchw,oc->nohw", (2, 3, 4, 5), (6, 3)), ("abc,abd,acd->bcd", (2, 3, 4), (2, 3, 5), (2, 4, 5)),
]


@pytest.mark.peer
@pytest.mark.parametrize("case", EINSUMS, ids=str)
def test_einsum_is_that_of_pytorch(case):
    torch = pytest.importorskip("torch")
    equation, *shapes = case
    for dtype, tolerance in (("float64", 1e-13), ("float32", 1e-5), ("float16", 2e-2)):
        same_as_pytorch(torch, lambda t, *x: t.einsum(equation, *x),
                        [normal(s).astype(dtype) for s in shapes], tolerance)


@pytest.mark.parametrize("case", EINSUMS, ids=str)
def test_the_gradient_of_einsum_agrees_with_differences(case):
    equation, *shapes = case
    gradcheck(lambda *x: mp.einsum(equation, *x), *map(normal, shapes))
    gradcheck(lambda *x: mp.einsum(equation, x), *(normal(s[::-1]).T for s in shapes))
    for i in range(len(shapes)):  # a gradient to one operand alone
        fixed = [Tensor(normal(s)) for s in shapes]
        gradcheck(lambda x: mp.einsum(equation, *fixed[:i], x, *fixed[i + 1:]), normal(shapes[i]))


@pytest.mark.parametrize("case", [c for c in EINSUMS if "..." not in c[0]], ids=str)
def test_einsum_of_integers_is_exact(case):
    equation, *shapes = case
    arrays = [rng.integers(-9, 9, s) for s in shapes]
    if "->" not in equation and any(c.isupper() for c in equation):
        return
    np.testing.assert_array_equal(mp.einsum(equation, *map(Tensor, arrays)).array,
                                  np.einsum(equation.replace(" ", ""), *arrays))


def test_one_tensor_as_several_operands_gets_the_sum_of_their_gradients():
    gradcheck(lambda x: mp.einsum("ij,kj,kl->il", x, x, x), normal((3, 3)))


def test_einsum_keeps_no_operand_that_its_backward_does_not_read():
    x = Tensor(normal((2, 3)), requires_grad=True)
    middle = x * 2
    kept = weakref.ref(middle.array)
    out = mp.einsum("ij,jk->ik", middle, Tensor(normal((3, 2))))
    del middle
    gc.collect()
    assert kept() is None and out.requires_grad


def test_an_operand_of_einsum_that_changes_before_backward_is_found():
    x, y = Tensor(normal(3), requires_grad=True), Tensor(normal(3))
    out = mp.einsum("i,i->i", x, y).sum()
    y.zero_()
    with pytest.raises(RuntimeError, match="gradient of einsum needs was changed in place"):
        out.backward()


def test_a_long_chain_of_products_makes_no_intermediate_larger_than_it_must():
    # From the left, the outer product of the two vectors would have 4e10 elements.
    x, y, n = np.ones(200_000), np.ones((200_000, 3)), np.ones(200_000)
    out = mp.einsum("i,j,jk,ik->", *map(Tensor, (x, n, y, y)))
    assert out.item() == 3 * 200_000.0 ** 2


X = normal((3, 4))
REFUSED = {  # name: (function of (library, x of (3, 4)), what our message must say)
    "sizes": (lambda t, x: t.einsum("ij,jk->ik", x, x), r"^einsum 'ij,jk->ik': index j is 4 in "
        r"operand 0 of shape \(3, 4\), but 3 in operand 1 of shape \(3, 4\)$"),
    "diagonal": (lambda t, x: t.einsum("ii", x), "index i is 3 in operand 0 .* but 4 in operand 0"),
    "diagonal of 1": (lambda t, x: t.einsum("ii", x[:1]), "index i is 1 .* but 4"),
    "diagonal of 1, later": (lambda t, x: t.einsum("i,ii", x[0], x[:1]), "index i is 1 .* but 4"),
    "ellipsis sizes": (lambda t, x: t.einsum("...i,...i", x, x[:2]), "ellipsis' dim -1 is 3"),
    "few operands": (lambda t, x: t.einsum("ij,jk", x), "names 2 operands, there are 1"),
    "many operands": (lambda t, x: t.einsum("ij", x, x), "names 1 operands, there are 2"),
    "few dims": (lambda t, x: t.einsum("i", x), r"'i' names 1 dims, operand 0 has the shape"),
    "many dims": (lambda t, x: t.einsum("ijk", x), "'ijk' names 3 dims"),
    "many dims beside an ellipsis": (lambda t, x: t.einsum("ij...k", x), "names 3 dims"),
    "output twice": (lambda t, x: t.einsum("ij->ii", x), "index i of the output"),
    "output unknown": (lambda t, x: t.einsum("ij->k", x), "index k of the output"),
    "letters": (lambda t, x: t.einsum("i1->i", x), "'i1' is not made of letters"),
    "dots": (lambda t, x: t.einsum("i.j", x), "not made of letters"),
    "two ellipses": (lambda t, x: t.einsum("......", x), "at most one ellipsis"),
    "two arrows": (lambda t, x: t.einsum("ij->i->j", x), "not made of letters"),
    "types": (lambda t, x: t.einsum("ij,jk->ik", x, x.T.float()), "float64, float32"),
    "bools": (lambda t, x: t.einsum("ij,kj->ik", x > 0, x > 0), "one type of numbers"),
    "nothing": (lambda t, x: t.einsum(""), "none"),
    "matmul bools": (lambda t, x: (x > 0) @ (x > 0).T, "one type of numbers"),
    "mm 3-d": (lambda t, x: t.mm(x[None], x), r"mm: shape \(1, 3, 4\): 2 dims"),
    "bmm 2-d": (lambda t, x: t.bmm(x, x), "bmm: shape"),
    "bmm batches": (lambda t, x: t.bmm(x[None], t.stack([x.T, x.T])), "the batches differ"),
    "mm": (lambda t, x: t.mm(x, x), "4 != 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_product_is_refused_in_words(name):
    function, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message) as info:
        function(mp, Tensor(X))
    assert "\n" not in str(info.value)


@pytest.mark.peer
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_pytorch_too(name):
    torch = pytest.importorskip("torch")
    with pytest.raises((ValueError, TypeError, RuntimeError)), \
            warnings.catch_warnings(action="ignore"):
        REFUSED[name][0](torch, torch.from_numpy(X))
