"""What operations refuse: in one line here, and by PyTorch as well."""

import warnings

import pytest

ERRORS = (ValueError, TypeError, IndexError, RuntimeError)


def assert_refused(call, message):
    """`call()` raises one line that matches `message`."""
    with pytest.raises(ERRORS, match=message) as info:
        call()
    assert "\n" not in str(info.value)


def assert_pytorch_refuses(function, array):
    """`function(torch, torch.nn.functional, tensor)` raises; skips the test without PyTorch."""
    torch = pytest.importorskip("torch")
    with pytest.raises(ERRORS), warnings.catch_warnings(action="ignore"):
        function(torch, torch.nn.functional, torch.from_numpy(array))
