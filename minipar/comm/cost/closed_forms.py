"""The costs of algorithms in closed form, where one is known: one table for people and tests.

Each form is written once, as an expression that is both printed and computed; a test holds it
against what is counted in the task graph. p ranks (at least 2), n bytes of the kind's buffer. The
forms are exact where the blocks of an algorithm are of equal size; where they are not, a message
or a reduction has up to one element more.
"""

import re
from dataclasses import dataclass
from math import isqrt

from ..algorithms.pipelined import ROUND
from ..algorithms.shared import BLOCK
from ..program import RANKS

# What else occurs in the expressions: {name: what it is}; `_values` computes it.
LEGEND = {
    "L": "L = lg p, rounded up",
    "K": "K = lg p, rounded down",
    "P": "P = 2^K ranks, to which the others are folded",
    "f": "f = 0 if p is 2^K, else 1",
    "r": "r = rows of the torus that is nearest to a square",
    "c": "c = its columns, p / r",
    "s": "s = sum of (group - 1) over the topology's levels",
    "k": f"k = segments, the root of (p-2) n / {ROUND} elements",
    "b": f"b = blocks of {BLOCK} elements that n/p bytes are",
}


@dataclass(frozen=True)
class Form:
    """rounds; and of the critical path: messages and fences, bytes moved, bytes reduced.

    only: the restriction of p (a key of RANKS) that the form has beyond the algorithm's own.
    """
    rounds: str
    alphas: str
    betas: str = "0"
    gammas: str = "0"
    only: str | None = None

    def values(self, p, n, itemsize=4, levels=None):
        """{"rounds", "alphas", "betas", "gammas"} for n bytes; None if there is no form for p.

        levels: of the topology; all ranks on one level if None.
        """
        if p < 2 or self.only and not RANKS[self.only][0](p):
            return None
        names = _values(p, n, itemsize, levels or (p,))
        return {name: eval(getattr(self, name), {"__builtins__": {}, "min": min}, names)
                for name in ("rounds", "alphas", "betas", "gammas")}

    def text(self):
        """The form as people write it: "2(p-1) alpha + 2n(p-1)/p beta + n(p-1)/p gamma"."""
        terms = [(_words(getattr(self, name)), name[:-1]) for name in ("alphas", "betas", "gammas")]
        words = " + ".join(f"({term}) {name}" if _is_sum(term) else f"{term} {name}"
                           for term, name in terms if term != "0")
        return words + (f" (for {RANKS[self.only][1]} ranks)" if self.only else "")

    def legend(self):
        """The lines of LEGEND for what the text uses."""
        used = set(re.findall(r"[A-Za-z]", f"{self.alphas} {self.betas} {self.gammas}"))
        return [words for name, words in LEGEND.items() if name in used]


def _values(p, n, itemsize, levels):
    floor, elements = p.bit_length() - 1, n // itemsize
    rows = next(r for r in range(isqrt(p), 0, -1) if p % r == 0)
    return {"p": p, "n": n, "L": (p - 1).bit_length(), "K": floor, "P": 1 << floor,
            "f": int(p != 1 << floor), "r": rows, "c": p // rows,
            "s": sum(level - 1 for level in levels),
            "k": max(1, isqrt((p - 2) * elements // ROUND)),
            "b": -(-(-(-elements // p)) // BLOCK)}


def _words(expression):
    return expression.replace("*", "")


def _is_sum(term):
    """Whether a term has a + or - outside its brackets."""
    while "(" in term:
        term = re.sub(r"\([^()]*\)", "", term)
    return "+" in term or "-" in term


SHARE, TWICE = "n*(p-1)/p", "2*n*(p-1)/p"
RING = Form("p-1", "p-1", SHARE, SHARE)
BINOMIAL = Form("L", "L", SHARE)

FORMS = {  # {(kind, algorithm): Form}
    ("all_reduce", "ring"): Form("2*(p-1)", "2*(p-1)", TWICE, SHARE),
    ("all_reduce", "recursive_doubling"): Form("K+2*f", "K+2*f", "(K+2*f)*n", "(K+f)*n"),
    ("all_reduce", "rabenseifner"): Form("2*K+2*f", "2*K+2*f", "2*n*(P-1)/P+2*f*n",
                                         "n*(P-1)/P+f*n"),
    ("all_reduce", "swing"): Form("2*L", "2*L", TWICE, SHARE),
    ("all_reduce", "naive"): Form("2*(p-1)", "2*(p-1)", "2*(p-1)*n", "(p-1)*n"),
    ("all_reduce", "binomial_reduce_broadcast"): Form("2*L", "2*L", "2*L*n", "L*n"),
    ("all_reduce", "all_gather_reduce"): Form("1", "p-1", "(p-1)*n", "(p-1)*n"),
    ("all_reduce", "reduce_scatter_all_gather"): Form("2", "2*(p-1)", TWICE, SHARE),
    ("all_reduce", "torus_2d"): Form("2*(r-1)+2*(c-1)", "2*(r-1)+2*(c-1)", TWICE, SHARE),
    ("all_reduce", "hierarchical"): Form("2*s", "2*s", TWICE, SHARE),
    ("all_reduce", "shared"): Form("2+p*b", "2", TWICE, SHARE),
    ("reduce_scatter", "pairwise"): RING,
    ("reduce_scatter", "ring"): RING,
    ("reduce_scatter", "recursive_halving"): Form("L", "L", SHARE, SHARE, only="power_of_two"),
    ("reduce_scatter", "shared"): Form("2+(p-1)*b", "2", SHARE, SHARE),
    ("all_gather", "ring"): Form("p-1", "p-1", SHARE),
    ("all_gather", "recursive_doubling"): Form("L", "L", SHARE),
    ("all_gather", "bruck"): Form("L", "2*L-1", SHARE, only="power_of_two"),
    ("all_gather", "neighbour_exchange"): Form("p/2", "p/2", SHARE),
    ("all_gather", "shared"): Form("3", "2", SHARE),
    ("broadcast", "binomial"): Form("L", "L", "L*n"),
    ("broadcast", "chain"): Form("k+min(1,p-2)", "p-2+k", "(p-2+k)*n/k"),
    ("broadcast", "scatter_all_gather"): Form("L+p-1", "L+p-1", TWICE),
    ("broadcast", "shared"): Form("3", "2", "n"),
    ("reduce", "binomial"): Form("L", "L", "L*n", "L*n"),
    ("reduce", "rabenseifner"): Form("2*L", "2*L", TWICE, SHARE, only="power_of_two"),
    ("gather", "binomial"): BINOMIAL,
    ("gather", "linear"): Form("1", "p-1", SHARE),
    ("scatter", "binomial"): BINOMIAL,
    ("scatter", "linear"): Form("1", "p-1", SHARE),
    ("all_to_all", "pairwise"): Form("p-1", "p-1", SHARE),
    ("all_to_all", "bruck"): Form("L", "L", "L*n/2", only="power_of_two"),
    ("barrier", "dissemination"): Form("L", "L"),
}
