"""Layers beside PyTorch's of the same name and arguments, and what they do by themselves."""

import copy

import numpy as np
import pytest
from peer import single_threaded_torch

import minipar as mp
from minipar import nn
from minipar.context import Context, use
from minipar.tensor import Tensor, backward

rng = np.random.default_rng(29)
IMAGE, LINE, ROWS = (2, 4, 7, 6), (3, 4, 9), (5, 4)


def normal(*shape):
    return np.asarray(rng.standard_normal(shape))


@pytest.fixture(autouse=True)
def context():
    """Each test has a fresh context: seed 0, float64."""
    with use(Context()) as fresh:
        mp.set_default_dtype("float64")
        yield fresh


LAYERS = [  # name, arguments, keywords, input shape
    ("Conv2d", [4, 6, 3], {}, IMAGE),
    ("Conv2d", [4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, False], {}, IMAGE),
    ("Conv2d", [4, 8, 3], {"padding": "same", "groups": 4}, IMAGE),
    ("Conv2d", [4, 3, 3], {"padding": "valid", "stride": [3, 2]}, IMAGE),
    ("Conv1d", [4, 6, 3], {}, LINE), ("Conv1d", [4, 6, 3, 2, 1, 2, 2, False], {}, LINE),
    ("Conv1d", [4, 4, 5], {"padding": "same", "groups": 4}, LINE),
    ("ConvTranspose2d", [4, 3, 2], {"stride": 2}, IMAGE),
    ("ConvTranspose2d", [4, 6, (3, 2), 3, 1, (1, 2), 2, False, 2], {}, IMAGE),
    ("MaxPool2d", [2], {}, IMAGE), ("MaxPool2d", [3, 2, 1], {"ceil_mode": True}, IMAGE),
    ("MaxPool1d", [2, 1], {}, LINE),
    ("AvgPool2d", [2], {}, IMAGE), ("AvgPool2d", [3, 2, 1, True, False], {}, IMAGE),
    ("AvgPool2d", [(2, 3)], {"divisor_override": 5}, IMAGE),
    ("AvgPool1d", [3, 2, 1, True, False], {}, LINE),
    ("AdaptiveAvgPool2d", [1], {}, IMAGE), ("AdaptiveAvgPool2d", [(None, 4)], {}, IMAGE),
    ("Upsample", [], {"scale_factor": 2}, IMAGE), ("Upsample", [(9, 4)], {}, IMAGE),
    ("BatchNorm2d", [4], {}, IMAGE), ("BatchNorm2d", [4, 0.1, 0.5, False], {}, IMAGE),
    ("BatchNorm2d", [4], {"momentum": None}, IMAGE),
    ("BatchNorm2d", [4], {"track_running_stats": False}, IMAGE),
    ("BatchNorm1d", [4], {}, LINE), ("BatchNorm1d", [4], {"momentum": 1.0}, ROWS),
    ("GroupNorm", [2, 4], {}, IMAGE), ("GroupNorm", [4, 4, 0.1, False], {}, LINE),
    ("LayerNorm", [6], {}, IMAGE), ("RMSNorm", [6], {}, IMAGE),
    ("RMSNorm", [(7, 6), 0.1, False], {}, IMAGE),
    ("Sigmoid", [], {}, ROWS), ("SiLU", [], {}, IMAGE),
    ("LeakyReLU", [], {}, ROWS), ("LeakyReLU", [-0.5], {}, IMAGE),
    ("Softmax", [1], {}, IMAGE), ("LogSoftmax", [-1], {}, ROWS), ("Identity", [], {}, ROWS),
]


@pytest.mark.peer
@pytest.mark.parametrize("name, arguments, options, shape", LAYERS)
def test_a_layer_has_pytorchs_state_values_and_gradients(name, arguments, options, shape):
    torch = single_threaded_torch()
    ours = getattr(nn, name)(*arguments, **options)
    theirs = getattr(torch.nn, name)(*arguments, **options).double()
    assert [(k, t.shape) for k, t in ours.state_dict().items()] == [
        (k, tuple(t.shape)) for k, t in theirs.state_dict().items()]
    theirs.load_state_dict({k: torch.tensor(t.array) for k, t in ours.state_dict().items()})
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x = Tensor(normal(*shape) + 2, requires_grad=True)
        other = torch.tensor(x.array, requires_grad=True)
        out, expected = ours(x), theirs(other)
        g = normal(*out.shape)
        backward([out], [g])
        expected.backward(torch.tensor(g))
        np.testing.assert_allclose(out.array, expected.detach().numpy(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(x.grad.array, other.grad.numpy(), rtol=1e-9, atol=1e-9)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.grad.array, q.grad.numpy(), rtol=1e-9, atol=1e-9, err_msg=key)
    for key, t in theirs.state_dict().items():
        own = ours.state_dict()[key].array
        assert own.dtype == t.numpy().dtype
        np.testing.assert_allclose(own, t.numpy(), rtol=1e-12, err_msg=key)


@pytest.mark.peer
@pytest.mark.parametrize("name, arguments, options", [
    ("Conv2d", [4, 6, 3, 2, 1, 2, 2, False], {}), ("Conv2d", [4, 4, 1], {}),
    ("Conv1d", [4, 4, 3], {"padding": "same"}), ("ConvTranspose2d", [4, 4, 2], {"stride": 2}),
])
def test_a_convolution_prints_as_pytorchs(name, arguments, options):
    torch = single_threaded_torch()
    assert repr(getattr(nn, name)(*arguments, **options)) == repr(
        getattr(torch.nn, name)(*arguments, **options))


@pytest.mark.peer
@pytest.mark.parametrize("name, arguments, options, shape", [
    ("Conv2d", [4, 6, 3], {"groups": 3}, None), ("Conv2d", [4, 3, 3], {"groups": 2}, None),
    ("Conv2d", [4, 4, 3], {"groups": 0}, None), ("Conv2d", [4, 4, 3, 2, "same"], {}, None),
    ("Conv2d", [4, 4, 3], {"padding": "full"}, None),
    ("ConvTranspose2d", [4, 4, 3, 1, "same"], {}, IMAGE), ("Conv2d", [3, 4, 3], {}, IMAGE),
    ("Conv1d", [4, 4, 3], {}, IMAGE), ("BatchNorm2d", [4], {}, LINE),
    ("BatchNorm1d", [4], {}, IMAGE), ("BatchNorm1d", [4], {}, (4,)),
    ("BatchNorm1d", [3], {}, ROWS), ("BatchNorm1d", [4], {}, (1, 4)),
    ("GroupNorm", [3, 4], {}, None), ("GroupNorm", [2, 4], {}, (2, 6, 3)),
    ("RMSNorm", [3], {}, ROWS), ("Upsample", [], {}, IMAGE),
])
def test_what_pytorchs_layer_refuses_is_refused(name, arguments, options, shape):
    torch = single_threaded_torch()
    for library, tensor in ((torch.nn, torch.tensor), (nn, Tensor)):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            layer = getattr(library, name)(*arguments, **options)
            if shape is not None:
                layer(tensor(normal(*shape).astype(np.float32)))
            assert shape is None, "refused neither when made nor when called"


@pytest.mark.parametrize("layer, elements", [
    (nn.Conv2d(8, 4, 3, groups=2), 4 * 9), (nn.Conv1d(6, 3, 5), 30),
    (nn.ConvTranspose2d(8, 4, (1, 3), groups=2), 2 * 3),
])
def test_filters_start_uniform_in_one_over_the_root_of_their_size(layer, elements):
    for p in layer.parameters():
        assert np.abs(p.array).max() <= elements ** -0.5
    assert np.abs(layer.weight.array).max() > 0.9 * elements ** -0.5
    assert layer.weight.array.std() == pytest.approx((3 * elements) ** -0.5, rel=0.25)


def test_batch_norm_without_momentum_averages_all_batches_that_it_was_trained_on():
    layer, batches = nn.BatchNorm1d(3, momentum=None), [normal(4, 3) for _ in range(5)]
    for batch in batches:
        layer(Tensor(batch))
        layer.eval()(Tensor(normal(7, 3)))
        layer.train()
    np.testing.assert_allclose(layer.running_mean.array, np.mean([b.mean(0) for b in batches], 0))
    np.testing.assert_allclose(layer.running_var.array,
                               np.mean([b.var(0, ddof=1) for b in batches], 0))
    assert layer.num_batches_tracked.item() == 5
    assert layer.num_batches_tracked.dtype is mp.int64


def test_a_deep_copy_of_a_batch_norm_has_statistics_of_its_own():
    layer = nn.Sequential(nn.BatchNorm1d(3))
    layer(Tensor(normal(4, 3)))
    before = {k: t.array.copy() for k, t in layer.state_dict().items()}
    twin = copy.deepcopy(layer)
    twin(Tensor(normal(4, 3)))
    assert twin[0].num_batches_tracked.item() == 2
    assert (twin[0].running_mean.array != before["0.running_mean"]).all()
    for key, t in layer.state_dict().items():
        np.testing.assert_array_equal(t.array, before[key])


def test_batch_norm_makes_its_buffers_in_the_default_dtype():
    mp.set_default_dtype("float32")
    assert nn.BatchNorm2d(2).running_var.dtype is mp.float32


@pytest.mark.parametrize("padding", [1, -4])
def test_the_padding_row_of_an_embedding_is_zero_and_stays_so(padding):
    layer = nn.Embedding(5, 3, padding_idx=padding)
    assert layer.padding_idx == 1 and not layer.weight.array[1].any()
    assert (layer.weight.array[[0, 2, 3, 4]] != 0).all()
    index = Tensor(np.array([[1, 2, 1], [4, 1, 2]]))
    layer(index).sum().backward()
    assert layer.weight.grad.array[:, 0].tolist() == [0, 0, 2, 0, 1]


def test_an_embedding_refuses_a_padding_row_that_it_has_not():
    for padding in (5, -6):
        with pytest.raises(ValueError, match=f"padding_idx {padding} is not in a table of 5"):
            nn.Embedding(5, 3, padding_idx=padding)
        with pytest.raises(ValueError, match="padding_idx"):
            nn.functional.embedding(Tensor(np.array([0])), Tensor(normal(5, 3)), padding)


def test_an_embedding_with_a_padding_row_has_the_other_rows_of_one_without():
    plain, padded = nn.Embedding(4, 2), nn.Embedding(4, 2, 0)
    assert plain.weight.array[0].all() and not padded.weight.array[0].any()
    np.testing.assert_array_equal(plain.weight.array[1:], padded.weight.array[1:])
