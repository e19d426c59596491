"""`minipar report`: the options that all reports share, and from them to files."""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ...comm.world import is_launched
from ...options import LAUNCHERS, UsageError
from .. import ranks
from . import compare, scaling, strategies, table
from .jobs import job_options

REPORTS = {"scaling": scaling, "compare": compare, "strategies": strategies}
PICTURES = ("png", "svg", "pdf")


def usage():
    lines = [f"  {name:10}  {report.ABOUT}" for name, report in REPORTS.items()]
    return "\n".join(["usage: minipar report REPORT [options] -- [options of the main job]", "",
                      "Runs the main job several times, and puts what it measured side by side.",
                      "", "reports:", *lines, "", "minipar report REPORT --help tells more."])


def _parser(name, report):
    p = ranks.Parser(prog=f"minipar report {name}", allow_abbrev=False,
                     usage=f"minipar report {name} [options] -- [options of the main job]",
                     description=report.ABOUT, epilog=report.EPILOG)
    report.add_options(p)
    p.add_argument("--launcher", choices=LAUNCHERS, default="processes",
                   help="what ranks are: processes (default), threads, or mpi")
    p.add_argument("--output", metavar="DIR", help="also write there, as a new folder if need be: "
                   "the table as JSON and CSV, pictures, and the metrics of every run")
    p.add_argument("--pictures", choices=PICTURES, default="png", help="default png")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


def main(argv):
    """Run the command; returns the exit status: 0; 1 if every run failed; 2 for what cannot be."""
    try:
        return _main(argv)
    except UsageError as error:
        print(f"minipar: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minipar: interrupted", file=sys.stderr)
        return 130


def _main(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *argv = argv
    if name not in REPORTS:
        raise UsageError(f"no report {name!r}: there are {', '.join(REPORTS)}")
    if is_launched():
        raise UsageError("a report starts its ranks itself: without mpirun, with --launcher mpi")
    at = argv.index("--") if "--" in argv else len(argv)
    report, job = REPORTS[name], argv[at + 1:]
    if {"-h", "--help"} & set(argv[:at]):
        _parser(name, report).print_help()
        return 0
    o = _parser(name, report).parse_args(argv[:at])
    o.job, o.job_options = job, job_options(job, report.OWN)
    report.check(o)
    if o.output is None:
        with tempfile.TemporaryDirectory() as folder:
            return _report(o, name, report, Path(folder))
    folder = Path(o.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror}") from None
    return _report(o, name, report, folder)


def _report(o, name, report, folder):
    """Make the rows, print and write them."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    rows = report.rows(o, runs)
    if o.json:
        print(json.dumps({"report": name, "job": o.job, "rows": rows}))
    else:
        shown = [{k: v for k, v in row.items() if k != "curve"} for row in rows]
        print("\n".join([table.text(shown, report.COLUMNS), *report.words(o, rows)]))
    ran = any("error" not in row for row in rows)
    if o.output is not None:
        table.write(folder, name, rows, report.COLUMNS, report=name, job=o.job)
        if find_spec("matplotlib") is None and ran:
            print("minipar: no pictures: they need matplotlib: pip install 'minipar[viz]'",
                  file=sys.stderr)
        elif ran:
            report.draw(rows, folder, o.pictures)
    return 0 if ran else 1
