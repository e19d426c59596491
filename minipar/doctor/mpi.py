"""Which MPI there is, and whether its parts belong together.

The library is asked in a process of its own, with a time limit, and never initialised: a broken
MPI can neither hang nor end the doctor.
"""

from pathlib import Path

from .machine import Finding, install

RANKS = 4  # of the main job, as README starts it
# Asked without MPI_Init, which would end a process that its launcher does not fit.
ASK_LIBRARY = ("import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
               "print(MPI.Get_library_version())")


def family(text):
    """Whose MPI a library or launcher is, from the version that it prints."""
    low = text.lower()
    for words, name in ((("open mpi", "openmpi", "open-mpi", "openrte", "prrte"), "Open MPI"),
                        (("intel(r) mpi",), "Intel MPI"), (("mvapich",), "MVAPICH"),
                        (("microsoft mpi",), "Microsoft MPI"), (("mpich", "hydra"), "MPICH")):
        if any(word in low for word in words):
            return name
    return "an unknown MPI"


def fit(launcher, library):
    """Whether ranks that the launcher of one family starts find each other in the library."""
    hydra = {"MPICH", "Intel MPI", "MVAPICH"}  # one process manager
    return launcher == library or {launcher, library} <= hydra


def mpi(machine):
    """The library that mpi4py loads, the launcher, and whether that starts its ranks."""
    library = None
    try:
        text = machine.run(machine.executable, "-c", ASK_LIBRARY).strip("\x00 \n")
        library = family(text)
        yield Finding("MPI library", " ".join(text.splitlines()[0].strip("\x00").split()))
    except OSError as error:
        yield Finding("MPI library", f"none that mpi4py can load ({error})", install("mpi"), True)
    beside = _launcher(machine, Path(machine.executable).parent)
    found = _launcher(machine) or beside
    if found is None:
        yield Finding("mpirun", "not on PATH", install("mpi"), True)
        return
    path, whose, version = found
    if library is None or fit(whose, library):
        hidden = _launcher(machine) is None
        yield Finding("mpirun", f"{path} ({version})",
                      f"not on PATH: call it by its path, or add {Path(path).parent}"
                      if hidden else "")
        if whose == "Open MPI":
            yield from _open_mpi(machine)
    elif beside is not None and fit(beside[1], library):
        yield Finding("mpirun", f"{path} is {whose}'s, but mpi4py loads {library}",
                      f"use {beside[0]}", True)
    else:
        extra = {"Open MPI": "openmpi", "MPICH": "mpi"}.get(library)
        yield Finding("mpirun", f"{path} is {whose}'s, but mpi4py loads {library}",
                      f"put {library}'s mpirun first on PATH" +
                      (f", or {install(extra)}" if extra else ""), True)


def _open_mpi(machine):
    """What Open MPI's mpirun refuses unless it is told otherwise."""
    if machine.is_root and "OMPI_ALLOW_RUN_AS_ROOT" not in machine.environ:
        yield Finding("mpirun as root", "refused by Open MPI", "export OMPI_ALLOW_RUN_AS_ROOT=1 "
                      "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", True)
    told = {"PRTE_MCA_rmaps_default_mapping_policy", "OMPI_MCA_rmaps_base_oversubscribe"}
    if machine.cores < RANKS and not told & set(machine.environ):
        yield Finding("mpirun's slots", f"{RANKS} ranks > {machine.cores} cores: refused by Open "
                      f"MPI", "export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe "
                      "OMPI_MCA_rmaps_base_oversubscribe=1", True)


def _launcher(machine, folder=None):
    """(path, family, version) of mpirun or mpiexec; None if there is none."""
    path = machine.which("mpirun", folder) or machine.which("mpiexec", folder)
    if path is None:
        return None
    try:
        text = machine.run(path, "--version")
    except OSError as error:
        return path, "an unknown MPI", f"unknown ({error})"
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    number = next((line for line in lines if "version" in line.lower()), "")
    return path, family(text), f"{family(text)}, {number or (lines or ['no version'])[0]}"
