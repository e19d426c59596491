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


def chunk_roles(count):
    """{"c0": (light, dark), ...} of `count` chunks."""
    if count <= len(OKABE_ITO):
        return {f"c{i}": OKABE_ITO[i] for i in range(count)}
    hues = [(20 + 360 * i / count) % 360 for i in range(count)]
    return {f"c{i}": (oklch(0.50 if i % 2 else 0.62, 0.15, hue),
                      oklch(0.70 if i % 2 else 0.80, 0.13, hue))
            for i, hue in enumerate(hues)}


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
