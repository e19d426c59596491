"""Rows as a table: aligned text for people, JSON and CSV for programs."""

import csv
import json


def amount(value):
    """A number of bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024


def text(rows, columns):
    """The table as aligned text; rows with an "error" have it in place of their numbers.

    rows: dicts. columns: (key, heading, format), the last one a format specification or a
    function. A column in which no row has anything is left out; a value that is None is "-".
    """
    used = [c for c in columns if any(row.get(c[0]) is not None for row in rows)]
    head = [heading for _, heading, _ in used]
    cells = [[_cell(row.get(key), form) for key, _, form in used] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells)]
    lines = [_line(head, widths, used)]
    for row, line in zip(rows, cells):
        if row.get("error"):
            line = [cell for cell, (key, *_) in zip(line, used) if row.get(key) is not None]
            lines.append(_line(line, widths, used) + f"  {row['error']}")
        else:
            lines.append(_line(line, widths, used))
    return "\n".join(line.rstrip() for line in lines)


def _cell(value, form):
    if value is None:
        return "-"
    return form(value) if callable(form) else format(value, form)


def _line(cells, widths, columns):
    """Words to the left, numbers to the right."""
    return "  ".join(f"{cell:{'<' if form == '' else '>'}{width}}"
                     for cell, width, (_, _, form) in zip(cells, widths, columns))


def write(folder, name, rows, columns, **about):
    """Write `name`.json, with everything, and `name`.csv, with what is in one cell each."""
    (folder / f"{name}.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n",
                                         encoding="utf-8")
    keys = [key for key, *_ in columns] + ["error"]
    with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
