"""The shape of the code base: who may import whom, and how long the reading path is."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minipar"

# Layers, lowest first. A module imports from its own layer and from lower ones.
LAYERS = [
    {"device", "cuda", "dtypes", "random", "context", "sinks", "memory", "tensor", "hooks",
     "execution", "quantise", "futures"},
    {"ops"},
    {"nn", "optim", "models", "amp"},
    {"comm"},
    {"data", "checkpoint"},
    {"parallel", "trace", "sim", "draw"},
    {"options", "pipeline_options", "sync_options", "speed_options",
     "bench", "build", "evaluation", "interrupt",
     "report", "start", "train", "doctor", "emulate", "commands", "cli", "__main__"},
]
RANK_BLIND = {"ops", "nn", "optim", "models", "tensor", "sinks", "hooks", "quantise"}


def layer_of(module):
    return next((i for i, names in enumerate(LAYERS) if module in names), None)


@functools.cache
def import_nodes(path):
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))]


def imports_of(path):
    """(imported top-level module of minipar, line) of every import inside the package."""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in import_nodes(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(package[:len(package) - node.level + 1])
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                target = base or [alias.name]
                if (PACKAGE / f"{target[0]}.py").exists() or (PACKAGE / target[0]).is_dir():
                    yield target[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and "minipar" in node.module:
            yield (node.module.split(".") + ["__init__"])[1], node.lineno


def files():
    return [p for p in sorted(PACKAGE.rglob("*.py"))]


def test_every_module_has_a_layer_and_imports_go_one_way():
    wrong = []
    for path in files():
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if module == "__init__":
            continue
        assert layer_of(module) is not None, f"{module} stands in no layer of this test"
        for target, line in imports_of(path):
            if layer_of(target) > layer_of(module):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, wrong


def test_mpi_and_cupy_have_one_door_each():
    for path in files():
        text = path.read_text(encoding="utf-8")
        if "mpi4py" in [n.module for n in import_nodes(path) if isinstance(n, ast.ImportFrom)]:
            assert path == PACKAGE / "comm" / "transport" / "mpi.py"
        assert not re.search("(import|from) cupy", text) or path == PACKAGE / "device.py"


def test_layers_that_are_rank_blind_do_not_know_communication():
    for path in files():
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if module in RANK_BLIND:
            assert not {t for t, _ in imports_of(path)} & {"comm", "parallel"}, path


@pytest.mark.parametrize("aside", ["trace", "draw", "sim"])
def test_what_stands_at_the_side_is_known_to_commands_only(aside):
    for path in files():
        module = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if module not in {aside, "__init__"} | LAYERS[-1]:
            assert aside not in {target for target, _ in imports_of(path)}, path


def test_importing_minipar_imports_no_mpi_no_cupy_and_no_compiler():
    code = ("import sys, minipar, minipar.nn, minipar.optim, minipar.comm, minipar.parallel\n"
            "import minipar.trace, minipar.sim.schedule\n"
            "bad = {'mpi4py', 'mpi4py.MPI', 'cupy', 'tqdm', 'threadpoolctl', 'setuptools'}\n"
            "print(sorted(bad & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done


def reading_path():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    part = readme.split("<!-- reading path -->")[1].split("<!-- end of reading path -->")[0]
    return [line.split("`")[1] for line in part.splitlines() if "`" in line]


def test_the_reading_path_is_at_most_12_files_and_2500_lines():
    paths = reading_path()
    lines = sum(len((ROOT / p).read_text(encoding="utf-8").splitlines()) for p in paths)
    assert 8 <= len(paths) <= 12
    assert lines <= 2500, lines


def test_the_reading_path_is_read_from_the_bottom_up():
    layers = [layer_of(Path(p).with_suffix("").parts[1]) for p in reading_path()]
    assert layers == sorted(layers)


def test_no_source_file_is_too_long_to_be_read_in_one_sitting():
    long = {str(p.relative_to(ROOT)): n for p in files()
            if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_no_line_is_longer_than_100_characters():
    here = [path for folder in ("minipar", "tests", "benchmarks")
            for path in (ROOT / folder).rglob("*.py")]
    long = [f"{p.relative_to(ROOT)}:{i}" for p in here
            for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
            if len(line) > 100]
    assert not long
