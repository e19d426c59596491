"""Prepares CUDA text for the emulator, line by line as it was.

A C++ compiler takes CUDA's words as macros (native/emulated.h) but for shared memory, where the
emulator has to know each variable: `__shared__ float s[32], t;` becomes `SHARED(s, float[32]);
SHARED(t, float)`, and `extern __shared__ float d[];` becomes `SHARED_DYNAMIC(d, float)`. (And
`__noinline__`, which cannot be a macro: headers of the C++ library use the word.)
"""

import re
from pathlib import Path

from .source import BuildError

_SPACE = r"(?://[^\n]*|/\*.*?\*/)"
_SKIPPED = re.compile(_SPACE + r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
_DECLARATION = re.compile(
    _SKIPPED.pattern + r"|(?P<before>(?:\b(?:(?:extern|static|volatile|const)\b"
    r"|(?:alignas|__align__)\s*\([^)]*\))\s*)*)\b__shared__\s+(?P<rest>[^;]*);", re.S)
_ALIGNMENT = re.compile(r"\b(?:__align__|alignas)\s*\([^)]*\)|__attribute__\s*\(\(.*?\)\)")
_PROVIDED = re.compile(  # headers of CUDA's that the emulator stands for
    r'^[ \t]*#[ \t]*include[ \t]*[<"](?:cuda_runtime|cuda_runtime_api|cuda|math_constants|'
    r'device_launch_parameters|device_functions)\.h[>"]', re.M)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.M)


def shared_declarations(text, file):
    """`text` of `file` with its declarations of shared memory as the emulator needs them."""

    def replace(match):
        if match["rest"] is None:
            return match[0]
        line = text.count("\n", 0, match.start()) + 1
        declared = " ".join(_ALIGNMENT.sub(" ", _SKIPPED.sub(" ", match["rest"])).split())
        volatile = "volatile " if "volatile" in match["before"] else ""
        out = "; ".join(_declare(part, "extern" in match["before"], f"{file}:{line}")
                        for part in _parts(volatile + declared))
        return f"{out};" + "\n" * match[0].count("\n")
    text = _PROVIDED.sub("", _DECLARATION.sub(replace, text))
    return re.sub(r"(?<!\()\b__noinline__\b", "__attribute__((noinline))", text)


def _parts(declared):
    """[(type, name, sizes)] of `float a[4], b`; nothing if it is not of this form."""
    depth, pieces = 0, [""]
    for c in declared:
        depth += (c in "<([{") - (c in ">)]}")
        if c == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += c
    base, parts = None, []
    for piece in pieces:
        found = re.fullmatch(r"\s*([^\[\]{}=]*?)\s*\b([A-Za-z_]\w*)\s*((?:\[.*\])?)\s*", piece)
        if found is None or (base is None and not found[1]):
            return [(None, declared, "")]
        base = found[1].rstrip("* ") if base is None else base
        stars = "".join(re.findall(r"\*", found[1]))
        parts.append((f"{base}{' ' + stars if stars else ''}", found[2], found[3]))
    return parts


def _declare(part, dynamic, where):
    type_, name, sizes = part
    if type_ is None or (dynamic and not re.fullmatch(r"\[\s*\]", sizes)):
        raise BuildError(f"{where}: shared memory is declared as `__shared__ type name[sizes];` "
                         f"or `extern __shared__ type name[];`, not {name!r}")
    return (f"SHARED_DYNAMIC({name}, {type_})" if dynamic
            else f"SHARED({name}, {type_}{sizes})")


def prepare(source, folders):
    """{name: text} of a .cu file and of the files beside it or in `folders` that it includes.

    source: Path. The names are those by which they include each other; the first is the file's.
    """
    files = {}

    def take(name, path, shown):
        text = path.read_text(encoding="utf-8")
        if launch := re.search("<<<", _SKIPPED.sub(lambda m: re.sub("[^\n]", " ", m[0]), text)):
            line = text.count("\n", 0, launch.start()) + 1
            raise BuildError(f"{shown}:{line}: `<<<...>>>` is code for the host: kernels are "
                             f"emulated from a file that has none")
        files[name] = shared_declarations(text, shown)
        for included in _INCLUDE.findall(files[name]):
            for folder in (path.parent, *folders):
                if included not in files and (folder / included).is_file():
                    take(included, folder / included, included)
    take(Path(source).name, Path(source), Path(source).name)
    return files
