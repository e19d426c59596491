"""bfloat16 as a type: made, converted, promoted, printed, saved, loaded, optimized; or refused."""

import copy
import pickle

import numpy as np
import pytest
from launch import python

import minipar as mp
from minipar import nn, optim
from minipar.checkpoint import load_file, save_file
from minipar.context import Context, set_kernels, use
from minipar.execution import compiler

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.filterwarnings("error")
HALVES = [mp.float16, mp.bfloat16]


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float32."""
    with use(Context()) as fresh:
        yield fresh


def test_tensors_are_made_in_bfloat16_by_every_name_of_it():
    for spec in (mp.bfloat16, "bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        assert mp.dtype(spec) is mp.bfloat16
        assert mp.tensor([1, 2.5], dtype=spec).dtype is mp.bfloat16
        assert mp.zeros(2, 3, dtype=spec).dtype is mp.bfloat16
    x = mp.tensor([[1.0, 1.003], [-2, 300]], dtype="bfloat16")
    assert x.tolist() == [[1.0, 1.0], [-2.0, 300.0]]  # 8 digits: 1.003 is nearest to 1
    assert x[1, 1].item() == 300.0 and isinstance(x[1, 1].item(), float) and float(x[1, 1]) == 300
    assert x.nbytes == 8 and mp.bfloat16.itemsize == 2 and mp.bfloat16.is_floating_point
    assert mp.from_numpy(np.ones(2, ml_dtypes.bfloat16)).dtype is mp.bfloat16
    assert mp.full((2,), 0.1, dtype="bfloat16").float().tolist() == [0.10009765625] * 2
    assert mp.arange(3, dtype="bfloat16").tolist() == [0, 1, 2]
    assert mp.ones_like(x).dtype is mp.randn_like(x).dtype is mp.rand(9, dtype=x.dtype).dtype
    assert mp.rand(5000, dtype="bfloat16").max().item() < 1


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_conversions_round_to_the_nearest_and_pass_gradients(dtype):
    values = [1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1e-40, np.inf, np.nan]
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        x = mp.tensor(values)
        y = x.half() if dtype is mp.float16 else x.bfloat16()
        expected = x.array.astype(dtype.storage)
        np.testing.assert_array_equal(y.array.astype("f"), expected.astype("f"))
        np.testing.assert_array_equal(y.float().array, expected.astype("f"))
        np.testing.assert_array_equal(y.double().array, expected.astype("d"))
        transposed = mp.tensor(np.arange(12.0).reshape(3, 4).T, dtype="float32").to(dtype)
        assert transposed.tolist() == np.arange(12.0).reshape(3, 4).T.tolist()
    z = mp.tensor([1.5, 2.0], requires_grad=True)
    (z.to(dtype) * z.to(dtype)).sum().backward()
    assert z.grad.dtype is mp.float32 and z.grad.tolist() == [3.0, 4.0]
    assert mp.tensor([1, 2]).to(dtype).int().tolist() == [1, 2]
    assert mp.tensor([0, 2.0]).to(dtype).bool().tolist() == [False, True]


def test_every_16_bit_number_survives_float32_and_back_with_either_kernels():
    bits = np.arange(2**16, dtype=np.uint16)
    for kernels in ("compiled", "reference"):
        set_kernels(kernels)
        for dtype in HALVES:
            x = mp.Tensor(bits.view(dtype.storage))
            back = x.float().to(dtype).array.view(np.uint16)
            numbers = ~np.isnan(x.float().array)
            np.testing.assert_array_equal(back[numbers], bits[numbers])
            assert np.isnan(mp.Tensor(back.view(dtype.storage)).float().array[~numbers]).all()


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
def test_kernels_round_as_numpy_and_ml_dtypes_do():
    rng = np.random.default_rng(0)
    for dtype in HALVES:
        exact = np.arange(2**16, dtype=np.uint16).view(dtype.storage).astype("f").view(np.uint32)
        near = [exact + np.uint32(k % 2**32) for k in (1, -1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000,
                                                       0x8001)]
        x = np.concatenate([*near, rng.integers(0, 2**32, 10**5, np.uint32)]).view(np.float32)
        x = x[~np.isnan(x)]
        with np.errstate(over="ignore"):
            expected = x.astype(dtype.storage)
        np.testing.assert_array_equal(mp.Tensor(x).to(dtype).array.view(np.uint16),
                                      expected.view(np.uint16))


def test_types_together_become_what_pytorch_makes_of_them():
    half, brain, single = (mp.ones(3, dtype=d) for d in (mp.float16, mp.bfloat16, mp.float32))
    for x, y, dtype in [(half, brain, mp.float32), (brain, single, mp.float32),
                        (brain, mp.ones(3, dtype="float64"), mp.float64),
                        (brain, mp.ones(3, dtype="int64"), mp.bfloat16),
                        (brain, mp.tensor(2.0), mp.bfloat16), (brain, mp.tensor(2.0).half(),
                                                               mp.bfloat16),
                        (mp.tensor(2.0).bfloat16(), mp.ones(3, dtype="int64"), mp.bfloat16)]:
        assert (x + y).dtype is (y * x).dtype is (x / y).dtype is dtype
        assert mp.where(mp.tensor([True, False, True]), x, y).dtype is dtype
    assert mp.cat([half, brain]).dtype is mp.stack([brain, single]).dtype is mp.float32
    for number in (2, 0.5, True):
        assert (brain * number).dtype is (number + brain).dtype is mp.bfloat16
        assert (brain > number).tolist() == [1 > number] * 3
        assert mp.where(mp.tensor([True, False, True]), brain, number).dtype is mp.bfloat16
    x = mp.tensor([0.1, 0.2], dtype="bfloat16")
    assert (x == 0.1).tolist() == [True, False]  # the number is rounded to x's type
    with pytest.raises(TypeError, match="float16 @ bfloat16: both need one type"):
        half @ brain


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_16_bit_tensors_are_changed_in_place_indexed_and_printed(dtype):
    x = mp.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    x += 0.5
    x *= mp.tensor([2.0, 1.0])
    x -= x / 2
    assert x.dtype is dtype and x.tolist() == [[1.5, 1.25], [3.5, 2.25]]
    x[0] = 0.25
    x[mp.tensor([False, True])] = mp.tensor([7.0, 8.0])
    x.masked_fill_(x == 7, -1)
    assert x.tolist() == [[0.25, 0.25], [-1, 8]]
    assert repr(x[0]) == f"tensor([0.25, 0.25], dtype=minipar.{dtype.name})"
    assert x.max().item() == 8 and x.argmax().item() == 3 and x.min(1)[0].tolist() == [0.25, -1]
    assert mp.isnan(x).any().item() is False and mp.floor(x).tolist() == [[0, 0], [-1, 8]]
    assert pickle.loads(pickle.dumps(x)).dtype is dtype and copy.deepcopy(x).tolist() == x.tolist()
    assert pickle.loads(pickle.dumps(dtype)) is dtype


def test_sums_of_many_small_numbers_do_not_stop_growing():
    for dtype in HALVES:
        x = mp.full((4096,), 1.0, dtype=dtype).requires_grad_()
        assert x.sum().item() == 4096  # bfloat16 alone would stop at 256, float16 at 2,048
        bias = mp.zeros(1, dtype=dtype, requires_grad=True)
        (x.detach() + bias).sum().backward()
        assert bias.grad.item() == 4096
        table = mp.zeros(2, 1, dtype=dtype, requires_grad=True)
        nn.functional.embedding(mp.zeros(4096, dtype="int64"), table).sum().backward()
        assert table.grad.tolist() == [[4096.0], [0.0]]


def model(dtype):
    made = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    return made.to(dtype)


@pytest.mark.parametrize("kernels", ["compiled", "reference"])
@pytest.mark.parametrize("make", [
    lambda p: optim.SGD(p, 0.1), lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: optim.Adam(p, 0.01, amsgrad=True), lambda p: optim.AdamW(p, 0.01)],
    ids=["sgd", "momentum", "amsgrad", "adamw"])
def test_an_optimizer_steps_16_bit_parameters_as_float32_ones_and_rounds(make, kernels):
    set_kernels(kernels)
    rng = np.random.default_rng(0)
    for dtype in HALVES:
        values, gradients = rng.standard_normal((2, 100)).astype(dtype.storage)
        steps = []
        for kind in (dtype, mp.float32):
            p = nn.Parameter(mp.tensor(values, dtype=kind))
            optimizer = make([p])
            p.grad = mp.tensor(gradients, dtype=kind)
            optimizer.step(scale=0.5)
            assert p.dtype is kind
            steps.append(p.detach())
        np.testing.assert_array_equal(steps[0].float().array, steps[1].to(dtype).float().array)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_16_bit_model_trains(dtype):
    net = model(dtype)
    assert {p.dtype for p in net.parameters()} == {dtype}
    optimizer = optim.AdamW(net.parameters(), 0.02)
    x = mp.randn(40, 6, dtype=dtype)
    target = x.array[:, :3].argmax(1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), mp.tensor(target))
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_16_bit_states_are_saved_and_loaded_with_their_bits(dtype, tmp_path):
    net = model(dtype)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    for name, value in net.state_dict().items():
        assert loaded[name].dtype is dtype
        np.testing.assert_array_equal(loaded[name].array.view("u2"), value.array.view("u2"))
    other = model(dtype)
    other.load_state_dict(loaded)
    wide = model(mp.float32)
    wide.load_state_dict(loaded)  # converted on the way
    x = mp.randn(2, 6)
    np.testing.assert_array_equal(other(x.to(dtype)).float().detach().array,
                                  net(x.to(dtype)).float().detach().array)


@pytest.mark.peer
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_16_bit_states_go_to_pytorch_and_come_back(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch
    net, theirs = model(dtype), torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.GELU(), torch.nn.Linear(8, 3)
    ).to(getattr(torch, dtype.name))
    net.load_state_dict(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert net.state_dict()[name].float().tolist() == value.float().tolist()
        assert mp.tensor(value).dtype is dtype
    save_torch(theirs.state_dict(), tmp_path / "theirs.safetensors")
    assert load_file(tmp_path / "theirs.safetensors")["0.weight"].dtype is dtype
    save_file(net.state_dict(), tmp_path / "ours.safetensors")
    theirs.load_state_dict(load_torch(tmp_path / "ours.safetensors"))


WITHOUT = "import sys; sys.modules['ml_dtypes'] = None\nimport minipar as mp\n"


def test_without_ml_dtypes_bfloat16_is_refused_by_name_in_one_line(tmp_path):
    save_file({"a": mp.ones(2, dtype="bfloat16")}, tmp_path / "a.safetensors")
    for code in ("mp.zeros(2, dtype='bfloat16')", "mp.ones(1).bfloat16()", "mp.dtype('bfloat16')",
                 "mp.tensor([1.0], dtype=mp.bfloat16)", "mp.set_default_dtype(mp.bfloat16)",
                 f"from minipar.checkpoint import load_file; load_file({str(tmp_path)!r} + "
                 f"'/a.safetensors')"):
        done = python("-c", WITHOUT + code)
        assert done.returncode == 1
        assert "Error: " in done.stderr.splitlines()[-1]
        assert "bfloat16 needs the package ml_dtypes: pip install 'minipar[bf16]'" in (
            done.stderr.splitlines()[-1])
    done = python("-c", WITHOUT + "print((mp.ones(2).half() * 2).sum().item(), mp.bfloat16)")
    assert done.stdout.split() == ["4.0", "minipar.bfloat16"], done.stderr


def test_importing_minipar_imports_no_ml_dtypes():
    done = python("-c", "import sys, minipar, minipar.nn, minipar.optim, minipar.comm\n"
                        "minipar.ones(2).half() + 1\nprint('ml_dtypes' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
