"""The colours of the pictures, by what they stand for, on light and on dark ground.

Chunks: up to eight have hues that people with any colour vision tell apart (Okabe & Ito 2008,
"Color universal design"); more go around the circle of hues of OKLCH, in which equal steps look
equal, light and dark in turn. Whatever a colour says stands in the picture as text too.
"""

from math import cos, pi, sin

# {role: (on light ground, on dark ground)}
ROLES = {
    "paper": ("#ffffff", "#14171c"), "ink": ("#1b1f24", "#e8eaed"),
    "soft": ("#5b6470", "#a3acb8"), "line": ("#aab2bd", "#596370"),
    "band": ("#f3f5f8", "#1c2128"), "hatch": ("#b9c0c9", "#4b5562"),
    "fence": ("#dfe3e8", "#2d343d"), "bad": ("#c62828", "#ff8a80"),
}
OKABE_ITO = (("#0072b2", "#4ba3e3"), ("#d55e00", "#f2853d"), ("#009e73", "#2fc59a"),
             ("#cc79a7", "#dd93bb"), ("#b8860b", "#e6b422"), ("#3aa0d8", "#85cdf5"),
             ("#7a4fbf", "#b195e8"), ("#6b6b6b", "#b5b5b5"))

# {kind of action: (hue in degrees, chroma)}: forward blue, backward orange, input gradient teal,
# weight gradient magenta.
ACTIONS = {"F": (252, 0.105), "B": (60, 0.115), "I": (185, 0.085), "W": (345, 0.105)}


def oklch(lightness, chroma, hue):
    """The nearest sRGB colour, "#rrggbb": lightness 0-1, hue in degrees. Ottosson 2020."""
    a, b = chroma * cos(hue * pi / 180), chroma * sin(hue * pi / 180)
    l, m, s = ((lightness + u * a + v * b) ** 3 for u, v in (
        (0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728),
        (-0.0894841775, -1.2914855480)))
    linear = (4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
              -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
              -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s)
    encoded = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055
               for c in (min(1.0, max(0.0, c)) for c in linear))
    return "#" + "".join(f"{round(255 * c):02x}" for c in encoded)


def contrast(one, other):
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def letters(colour, ground):
    """The colour, mixed with ink as far as letters on `ground` need: to a contrast of 4.5."""
    ink = ROLES["ink"][ground == ROLES["band"][1]]
    for share in range(0, 101, 5):
        parts = [(int(colour[i:i + 2], 16), int(ink[i:i + 2], 16)) for i in (1, 3, 5)]
        mixed = "#" + "".join(f"{(c * (100 - share) + k * share) // 100:02x}" for c, k in parts)
        if contrast(mixed, ground) >= 4.5:
            break
    return mixed


def chunk_roles(count):
    """{"c0": (light, dark), ...} of `count` chunks, and "t0", ... for letters of these colours."""
    pairs = OKABE_ITO[:count]
    if count > len(OKABE_ITO):
        hues = [(20 + 360 * i / count) % 360 for i in range(count)]
        pairs = [(oklch(0.50 if i % 2 else 0.62, 0.15, hue),
                  oklch(0.70 if i % 2 else 0.80, 0.13, hue)) for i, hue in enumerate(hues)]
    roles = {f"c{i}": pair for i, pair in enumerate(pairs)}
    roles.update((f"t{i}", tuple(map(letters, pair, ROLES["band"])))
                 for i, pair in enumerate(pairs))
    return roles


def share_roles(count):
    """{"s0": (light, dark), ...}: shades of 0 to `count` contributions, from the ground to blue,
    on all of which the ink is read."""
    return {f"s{i}": (oklch(0.975 - 0.35 * i / count, 0.005 + 0.115 * i / count, 245),
                      oklch(0.235 + 0.23 * i / count, 0.012 + 0.10 * i / count, 245))
            for i in range(count + 1)} if count else {"s0": ROLES["band"]}


def action_roles(chunks):
    """{"F0": (light, dark), ...}: of each kind of action and virtual stage, the later the lighter;
    the same on either ground, under dark letters."""
    out = {}
    for kind, (hue, chroma) in ACTIONS.items():
        for v in range(chunks):
            lightness = 0.74 + (0.17 * v / (chunks - 1) if chunks > 1 else 0.04)
            colour = oklch(lightness, chroma * (1 - 0.35 * v / max(1, chunks - 1)), hue)
            out[f"{kind}{v}"] = (colour, colour)
    return out
