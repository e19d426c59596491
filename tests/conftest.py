"""What all tests have in common: settings of pytest's process and of those that it starts."""

import gc
import os

# Hundreds of tests start processes: the first one compiles the package's modules for all others.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # several tests run at a time: none takes all cores
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def pytest_collection_finish():
    """Collections of garbage need not look through all tests there are, again and again."""
    gc.freeze()
