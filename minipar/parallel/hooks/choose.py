"""From `--compress NAME[:ARG]` to a communication hook and its state."""

import difflib

from .half import bf16_compress_hook, fp16_compress_hook
from .powersgd import PowerSGDState, powerSGD_hook
from .quantised import QuantiseState, quantise_hook
from .sign import SignState, sign_hook
from .topk import TopKState, topk_hook


def _powersgd(r):
    return PowerSGDState(None, r, start_powerSGD_iter=0), powerSGD_hook


# {name: (what makes (state, hook), the argument's type and default, or None where there is none)}
_COMPRESSIONS = {
    "fp16": (lambda: (None, fp16_compress_hook), None),
    "bf16": (lambda: (None, bf16_compress_hook), None),
    "int8": (lambda: (QuantiseState(bits=8), quantise_hook), None),
    "int4": (lambda: (QuantiseState(bits=4), quantise_hook), None),
    "sign": (lambda: (SignState(), sign_hook), None),
    "topk": (lambda ratio: (TopKState(ratio=ratio), topk_hook), (float, 0.01)),
    "powersgd": (_powersgd, (int, 4)),
}
COMPRESSIONS = tuple(_COMPRESSIONS)


def compression(text):
    """(state, hook) for NAME or NAME:ARG: topk's part of the elements (0.01 if not given), or
    powersgd's rank (4). One for each model: the state belongs to its gradients.

    Raises ValueError with one line for a name or argument that there is not.
    """
    name, colon, given = text.partition(":")
    if name not in _COMPRESSIONS:
        near = difflib.get_close_matches(name, COMPRESSIONS, n=3) or COMPRESSIONS
        raise ValueError(f"no {name!r}: did you mean {', '.join(near)}?")
    make, argument = _COMPRESSIONS[name]
    if argument is None:
        if colon:
            raise ValueError(f"{name} takes no argument, and {given!r} was given")
        return make()
    kind, default = argument
    try:
        value = kind(given) if colon else default
    except ValueError:
        raise ValueError(f"{name}:{given}: {given!r} is not "
                         f"{'a whole number' if kind is int else 'a number'}") from None
    return make(value)
