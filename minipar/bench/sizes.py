"""Sizes as people write them."""

import re

from ..options import UsageError

UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "K": 2**10, "M": 2**20,
         "G": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text):
    """Bytes of "4", "64KiB", "1.5M" (2^20), "3MB" (10^6). Raises UsageError for other text."""
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].upper()) if match else None
    try:
        return int(float(match[1]) * unit)
    except (TypeError, ValueError):
        raise UsageError(f"{text!r} is no size: 4, 64KiB, 1.5MiB, 3MB") from None


def sizes_between(low, high, factor=4):
    """Sizes from `low` to `high` bytes, each `factor` times the one before."""
    out = [low]
    while out[-1] * factor <= high:
        out.append(out[-1] * factor)
    return out


def sizes_of(text, least):
    """The sizes that --sizes asks for: LOW:HIGH in steps of 4 from `least` on, or a list."""
    if ":" not in text:
        return [parse_size(part) for part in text.split(",")]
    low, _, high = text.partition(":")
    low, high = max(parse_size(low), least), parse_size(high)
    if high < low:
        raise UsageError(f"--sizes {text}: {high} bytes is less than {low}")
    return sizes_between(low, high)
