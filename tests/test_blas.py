"""The choice of BLAS kernels: for which CPUs, and that all processes of a job choose alike."""

import pytest
from launch import python

from minipar.blas import NEEDED, choose, chosen

FLAGS = "fpu sse2 avx2 fma " + " ".join(NEEDED)


def cpuinfo(vendor, flags):
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: X: Y\nflags\t\t: {flags}\n"
    return f"{core}\n{core}"


def test_only_amds_cpus_with_avx_512_get_other_kernels():
    assert chosen(cpuinfo("AuthenticAMD", FLAGS)) == "SkylakeX"
    assert chosen(cpuinfo("GenuineIntel", FLAGS)) is None  # OpenBLAS knows them
    assert chosen(cpuinfo("AuthenticAMD", FLAGS.replace("avx512bw", ""))) is None
    assert chosen("Features\t: asimd\n") is None and chosen("") is None


@pytest.mark.parametrize("before, numpy_is_there, after", [
    ({}, False, {"OPENBLAS_CORETYPE": "SkylakeX"}),
    ({}, True, {"MINIPAR_BLAS": "off"}),
    ({"MINIPAR_BLAS": "off"}, False, {"MINIPAR_BLAS": "off"}),
    ({"OPENBLAS_CORETYPE": "Zen"}, False, {"OPENBLAS_CORETYPE": "Zen"}),
    ({"OPENBLAS_CORETYPE": "Zen"}, True, {"OPENBLAS_CORETYPE": "Zen"})])
def test_what_the_user_or_the_parent_has_chosen_stands(before, numpy_is_there, after):
    environment = dict(before)
    choose(environment, cpuinfo("AuthenticAMD", FLAGS), numpy_is_there)
    assert environment == after


def test_a_child_computes_with_the_kernels_of_its_parent():
    ask = ("from threadpoolctl import threadpool_info as i; "
           "print([x.get('architecture') for x in i() if x['user_api'] == 'blas'])")
    child = f"import subprocess, sys; {ask}; sys.stdout.flush(); " \
            f"subprocess.run([sys.executable, '-c', \"import minipar; {ask}\"])"
    for first, second in (("numpy", "minipar"), ("minipar", "numpy")):
        done = python("-c", f"import {first}, {second}; {child}", MINIPAR_BLAS="",
                      OPENBLAS_CORETYPE="")
        lines = done.stdout.splitlines()
        assert len(lines) == 2 and lines[0] == lines[1], (first, done)
