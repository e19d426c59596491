"""The programs and schedulers that a command is about: those of a file, or minipar's own."""

import importlib.util
import sys
import traceback
from pathlib import Path

from ..comm import algorithms  # noqa: F401  (registers them)
from ..comm.program import ALGORITHMS, Program
from ..options import UsageError
from ..parallel.schedule import SCHEDULES, Scheduler


def built_in():
    """The registered programs, kind by kind."""
    return [program for table in ALGORITHMS.values() for program in table.values()]


def programs_of(path):
    """The Programs that a Python file defines, registered or not, in the order of their names'
    first use.

    The file is run as a module; what lies beside it can be imported. Raises UsageError if there is
    no such file, if it cannot be run, or if there is no program in it.
    """
    programs, _ = definitions_of(path)
    if not programs:
        raise UsageError(f"there is no program in {path}: decorate a generator with @collective")
    return programs


def definitions_of(path):
    """(Programs, Schedulers) that a Python file defines; see `programs_of`. SCHEDULES stays what
    it was: a user's schedule is called FILE.py:NAME, and takes no other's place."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file {path}")
    offered = dict(SCHEDULES)
    before = {id(thing) for thing in [*built_in(), *offered.values()]}
    spec = importlib.util.spec_from_file_location(f"minipar_user_{path.stem}", path)
    if spec is None:
        raise UsageError(f"{path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        things = [*vars(module).values(), *built_in(), *SCHEDULES.values()]
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be run: {_in_a_line(error, path)}") from None
    finally:
        sys.path.remove(str(path.resolve().parent))
        SCHEDULES.clear()
        SCHEDULES.update(offered)
    found = {id(thing): thing for thing in things
             if isinstance(thing, (Program, Scheduler)) and id(thing) not in before}.values()
    return ([thing for thing in found if isinstance(thing, Program)],
            [thing for thing in found if isinstance(thing, Scheduler)])


def _in_a_line(error, path):
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if Path(frame.filename) == path]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{where}"
