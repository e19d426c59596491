"""The documentation is executed: every Python block of README.md and docs/*.md, in order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_python_blocks_of_a_page_run_in_one_process(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert blocks, f"{page.name} has no Python block"
    done = subprocess.run([sys.executable, "-W", "error", "-c", "\n".join(blocks)],
                          capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_readme_lists_every_option_that_it_shows():
    from minipar.options import parser
    known = {s for action in parser()._actions for s in action.option_strings}
    shown = set(re.findall(r"minipar\.train.*", (ROOT / "README.md").read_text(encoding="utf-8")))
    used = {flag for line in shown for flag in re.findall(r"--[a-z-]+", line)}
    assert used and used <= known
