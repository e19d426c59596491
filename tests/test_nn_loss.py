"""Losses as layers beside PyTorch's."""

import numpy as np
import pytest
from peer import single_threaded_torch

from minipar import nn
from minipar.tensor import Tensor

rng = np.random.default_rng(37)
CLASSES = np.array([2, 0, 1, 2, 0])
WEIGHT = np.array([0.5, 2.0, 1.5])
INPUT, TARGET = rng.standard_normal((5, 3)), rng.random((5, 3))


@pytest.mark.peer
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name, target, tensors, options", [
    ("MSELoss", TARGET, {}, {}), ("L1Loss", TARGET, {}, {}),
    ("CrossEntropyLoss", CLASSES, {}, {}), ("CrossEntropyLoss", TARGET, {"weight": WEIGHT}, {}),
    ("CrossEntropyLoss", CLASSES, {"weight": WEIGHT}, {"ignore_index": 2, "label_smoothing": 0.2}),
    ("NLLLoss", CLASSES, {}, {}), ("NLLLoss", CLASSES, {"weight": WEIGHT}, {"ignore_index": 0}),
    ("BCEWithLogitsLoss", TARGET, {}, {}),
    ("BCEWithLogitsLoss", TARGET, {"weight": WEIGHT, "pos_weight": WEIGHT[::-1].copy()}, {}),
])
def test_a_loss_is_pytorchs(name, target, tensors, options, reduction):
    torch = single_threaded_torch()
    layer = getattr(nn, name)(reduction=reduction, **options,
                              **{k: Tensor(a) for k, a in tensors.items()})
    theirs = getattr(torch.nn, name)(reduction=reduction, **options,
                                     **{k: torch.tensor(a) for k, a in tensors.items()})
    assert list(layer.state_dict()) == list(theirs.state_dict())
    x, other = Tensor(INPUT, True), torch.tensor(INPUT, requires_grad=True)
    out, expected = layer(x, Tensor(target)), theirs(other, torch.tensor(target))
    np.testing.assert_allclose(out.array, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    out.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(x.grad.array, other.grad.numpy(), rtol=1e-12, atol=1e-14)
