"""Where pictures go: the file formats, by the ending of a file's name."""

from pathlib import Path

from .png import check as check_png
from .png import to_png
from .svg import THEMES, to_svg


def check(path, endings=(".svg", ".png", ".html", ".txt"), theme=None):
    """Raise ValueError, in one line, for a file that could not be written; before it is drawn."""
    path = Path(path)
    if path.suffix not in endings:
        raise ValueError(f"{path}: {path.suffix or 'a name without ending'} is no format of "
                         f"pictures: there are {', '.join(endings)}")
    if theme is not None and theme not in THEMES:
        raise ValueError(f"no theme {theme!r}: there are {', '.join(THEMES)}")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"{path} cannot be written: {path.resolve().parent} is no folder, or it "
                         f"is one itself")
    if path.suffix == ".png":
        check_png()


def write_scene(path, scene, theme=None, text=None, page=None):
    """Write a picture as what the name's ending says.

    scene, text, page: functions that give the Scene, the text, the HTML; None for what is not to
    be had. theme: "auto" (SVG; the default), "light" (PNG's default) or "dark".
    Raises ValueError where that cannot be.
    """
    given = {".svg": scene, ".png": scene, ".html": page, ".txt": text}
    check(path, [ending for ending, make in given.items() if make is not None], theme)
    ending = Path(path).suffix
    try:
        if ending == ".png":
            to_png(scene(), path, "dark" if theme == "dark" else "light")
            return
        words = (to_svg(scene(), theme or "auto") if ending == ".svg" else
                 page() if ending == ".html" else text() + "\n")
        Path(path).write_text(words, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
