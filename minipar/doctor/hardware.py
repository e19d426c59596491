"""Cores, memory, shared memory, compiler, GPU: what the machine is made of."""

import os
import shutil

from .machine import Finding, size

CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")


def cores(machine):
    usable, words = machine.cores, [f"{machine.cores} in the machine"]
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
        words.append(f"{usable} for this process")
    quota = cpu_quota(machine)
    if quota is not None:
        usable = min(usable, max(1, int(quota)))
        words.append(f"a quota of {quota:g}")
    advice = "" if usable > 1 else "ranks take turns on one core: correct, but not faster"
    yield Finding("cores", ", ".join(words), advice)
    yield Finding("ranks", f"up to {usable} with a core each; more of them share cores")


def _cgroups(machine, controller):
    """Folders of this process's control groups, from its own up: (version, folder)."""
    for line in machine.read("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            root = "/sys/fs/cgroup"
        elif controller in names.split(","):
            root = f"/sys/fs/cgroup/{controller}"
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield 2 if names == "" else 1, "/".join([root, *parts[:depth]])


def _limits(machine, controller, files):
    """The numbers in the control files that exist: lists of words, one for each group."""
    try:
        groups = list(_cgroups(machine, controller))
    except OSError:
        return
    for version, folder in groups:
        try:
            yield [word for name in files[version]
                   for word in machine.read(f"{folder}/{name}").split()]
        except OSError:
            continue


def cpu_quota(machine):
    """How many cores' worth of time the control groups allow; None if they do not limit it."""
    files = {2: ["cpu.max"], 1: ["cpu.cfs_quota_us", "cpu.cfs_period_us"]}
    return min((int(quota) / int(period) for quota, period in _limits(machine, "cpu", files)
                if quota not in ("max", "-1")), default=None)


def memory(machine):
    if not hasattr(os, "sysconf"):
        raise OSError("this system does not say")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = {2: ["memory.max"], 1: ["memory.limit_in_bytes"]}
    limit = min((int(word) for word, in _limits(machine, "memory", files) if word != "max"),
                default=total)
    text = f"{size(total)} in the machine"
    try:
        rows = (line.split() for line in machine.read("/proc/meminfo").splitlines())
        text += f", {size(1024 * next(int(r[1]) for r in rows if r[0] == 'MemAvailable:'))} free"
    except (OSError, StopIteration):
        pass  # not Linux
    yield Finding("memory", text + (f", a limit of {size(limit)}" if limit < total else ""))


def shared_memory(machine):
    if not os.path.isdir("/dev/shm"):
        yield Finding("shared memory", "no /dev/shm")
        return
    usage = shutil.disk_usage("/dev/shm")
    yield Finding("shared memory", f"{size(usage.free)} free of {size(usage.total)} in /dev/shm",
                  "a container gets more by docker run --shm-size=1g"
                  if usage.free < 256 * 2**20 else "")


def compiler(machine):
    """The one that builds the kernels: `execution.compiler` looks in the same order."""
    for name in (*machine.environ.get("CXX", "").split()[:1], "c++", "g++", "clang++"):
        path = machine.which(name)
        if path is not None:
            text = machine.run(path, "--version")
            yield Finding("C++ compiler", f"{path} ({(text.strip().splitlines() or ['?'])[0]})")
            return
    yield Finding("C++ compiler", "none", "kernels run as their NumPy reference; to compile them: "
                  "apt install g++, xcode-select --install, or your system's way")


def gpu(machine):
    yield Finding("CuPy", next((f"{name} {v}" for name in CUPY if (v := machine.installed(name))),
                               "not installed"))
    path = machine.which("nvidia-smi")
    if path is None:
        yield Finding("GPU", "none that nvidia-smi knows", "not needed: everything runs on the CPU")
    else:
        text = machine.run(path, "--query-gpu=name,driver_version,memory.total",
                           "--format=csv,noheader")
        found = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        yield Finding("GPU", "; ".join(f"{gpu} (name, driver, memory)" for gpu in found) or "none")
