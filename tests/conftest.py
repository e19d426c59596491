"""What all tests have in common: settings of pytest's process and of those that it starts."""

import gc
import os
import signal

import pytest

# Hundreds of tests start processes: the first one compiles the package's modules for all others.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # several tests run at a time: none takes all cores
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# What runs in the background of a shell ignores Ctrl-C, and so does all that it starts; tests of
# interrupts need processes that do not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def what_there_is_already_is_no_garbage():
    """Collections in a file's tests look through its own objects, and not through all tests."""
    gc.collect()
    gc.freeze()
