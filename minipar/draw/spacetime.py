"""The space-time diagram of a collective: ranks side by side, time downwards, a row a step."""

from . import marks
from .colours import chunk_roles
from .marks import DASHES, HEAD
from .names import chunk_names, claim, sentence, short_line, title, totals, unit
from .scene import Box, Circle, Label, Line, Scene, text_width, wrapped

LEFT, RIGHT, EDGE = 94, 24, 14  # margins; from the edge of the lanes to the numbers beside it
LABEL = 11.0  # the size of letters at arrows
SLOT = 13  # between two that arrive at one rank in one step


def space_time(flow):
    """The Scene of a Flow: lanes of ranks, arrows coloured by chunk, marks of what is done.

    Groups: "arrow", one a message or one-sided access; "reduction", one for each; "copy"; "fence".
    All of them have data-step.
    """
    return _Diagram(flow).draw()


class _Diagram:
    def __init__(self, flow):
        self.flow, self.size = flow, flow.size
        longest = max((self.width(self.label([m])) for m in flow.messages), default=0)
        self.lane = max(80 if flow.size <= 8 else 58, 2.1 * longest + 10)
        inner = max((flow.size - 1) * self.lane, 480)
        self.left = LEFT + max(self.lane / 2, (inner - (flow.size - 1) * self.lane) / 2)
        width = max(self.left + (flow.size - 1) * self.lane + self.lane / 2 + RIGHT, inner + 120)
        self.scene = Scene(width, 0, title(flow))
        self.scene.roles.update(chunk_roles(len(flow.chunks)))
        self.low, self.high = self.x(-0.5), self.x(flow.size - 0.5)

    def x(self, rank):
        """Where a rank's lane is."""
        return self.left + rank * self.lane

    def width(self, text):
        """Of what stands at an arrow."""
        return text_width(text, LABEL, bold=True)

    def label(self, moves):
        """What stands at arrows that leave a rank to one side."""
        chunks = sorted({c for move in moves for c in move.chunks})
        channels = sorted({move.channel for move in moves})
        text = chunk_names(chunks, 7).replace(" chunks", " ch.") if chunks else ""
        return text + f" #{','.join(map(str, channels))}" * (channels not in ([], [0]))

    def draw(self):
        """The scene."""
        y = self.heading()
        tops = [y]
        for step in range(self.flow.steps):
            tops.append(tops[-1] + self.height(step))
        self.lanes(y, tops)
        for step, moves in enumerate(self.flow.moves):
            if step in self.flow.fences:
                self.fence(step, tops[step], tops[step + 1])
            self.arrows(step, tops[step] + 10, tops[step + 1] - 11)
            local = [(i, m) for i, m in enumerate(moves) if m.source == m.target]
            middle = (tops[step] + tops[step + 1]) / 2
            for rank in range(self.size):
                self.local(step, rank, middle, [m for m in local if m[1].target == rank])
        self.scene.height = marks.legend(self.scene, self.flow, tops[-1] + 34, 24) + 10
        return self.scene

    def heading(self):
        """The lines above; returns where the lanes' names go."""
        y, room = 28, self.scene.width - 48
        shapes = []
        for text, size, colour, bold in ((title(self.flow), 16, "ink", True),
                                         (claim(self.flow), 12, "soft", False),
                                         (totals(self.flow), 12, "soft", False)):
            for line in wrapped(text, room, size, bold):
                shapes.append(Label(24, y, line, size, colour=colour, bold=bold))
                y += size * 1.4
            y += 3
        self.scene.add("heading", *shapes)
        return y + 34

    def height(self, step):
        """Of a step's row."""
        moves = [m for m in self.flow.moves[step] if m.source != m.target]
        if not moves:
            return 30
        arriving = max(sum(m.target == rank for m in moves) for rank in range(self.size))
        far = max(abs(self.hop(step, m)) for m in moves)
        return 38 + min(6 * far, 60) + SLOT * (arriving - 1)

    def hop(self, step, move):
        """How many lanes an arrow goes to the right; beyond the last lane it enters at the first
        again, where all ranks send equally far around the circle."""
        hop = move.target - move.source
        pairs = {m[2:4] for m in self.flow.moves[step] if m.source != m.target}
        around = {(target - source) % self.size for source, target in pairs}
        if (self.size > 2 and len(around) <= 2 and len(pairs) == self.size * len(around)
                and 2 * (hop % self.size) != self.size):
            hop %= self.size
            return hop if 2 * hop < self.size else hop - self.size
        return hop

    def lanes(self, y, tops):
        """Rows and lanes, and their names."""
        rows = [Box(self.low - EDGE, top, self.high - self.low + 2 * EDGE, bottom - top, "band")
                for top, bottom in list(zip(tops, tops[1:]))[::2]]
        self.scene.add("rows", *rows)
        self.scene.add("lanes", *[Line(((self.x(r), y - 6), (self.x(r), tops[-1] + 6)), "line", 1.2)
                                  for r in range(self.size)])
        word = "rank " if self.lane > 50 else ""
        self.scene.add("ranks", *[Label(self.x(r), y - 13, f"{word}{r}", 12, "middle", bold=True)
                                  for r in range(self.size)])
        for step, (top, bottom) in enumerate(zip(tops, tops[1:])):
            self.scene.add("step", Label(self.low - EDGE - 8, (top + bottom) / 2 + 4,
                                         f"{unit(self.flow)} {step}", 11, "end", "soft"), step=step)

    def fence(self, step, top, bottom):
        """A bar across all ranks."""
        middle = (top + bottom) / 2
        self.scene.add(
            "fence", Box(self.x(0) - 16, middle - 8, self.x(self.size - 1) - self.x(0) + 32, 16,
                         "fence", "line", 1, 4),
            Label((self.x(0) + self.x(self.size - 1)) / 2, middle + 4, "fence", 11, "middle"),
            title=f"{unit(self.flow)} {step}: all ranks pass a fence", step=step)

    def arrows(self, step, top, bottom):
        """The messages and one-sided accesses of a step."""
        moves = [m for m in self.flow.moves[step] if m.source != m.target]
        numbers = {id(move): i for i, move in enumerate(self.flow.moves[step])}
        arrived, left = {}, {}  # {rank: how many before}, {(source, target): how many before}
        sides = {}  # {(rank, to the right): [(move, tail, head)]}
        for move in sorted(moves, key=lambda m: (abs(self.hop(step, m)), m.source)):
            later = sum(m.target == move.target for m in moves) - 1 - arrived.get(move.target, 0)
            twins = left.get(move[2:4], 0)
            hop = self.hop(step, move)
            tail = self.x(move.source), top + 5 * twins
            head = self.x(move.source + hop), bottom - SLOT * later
            self.arrow(step, move, tail, head, numbers[id(move)], numbered=not twins)
            arrived[move.target] = arrived.get(move.target, 0) + 1
            left[move[2:4]] = twins + 1
            sides.setdefault((move.source, hop > 0), []).append((move, tail, head))
        if sides:
            self.scene.add("labels", *[self.beside_tail(right, arrows)
                                       for (_, right), arrows in sides.items()], step=step)

    def beside_tail(self, right, arrows):
        """What the arrows carry that leave a rank to one side: on the shortest, near its tail, so
        that labels of two ranks never meet."""
        moves = [move for move, *_ in arrows]
        text, chunks = self.label(moves), {c for move in moves for c in move.chunks}
        _, (x, y), (far, low) = arrows[0]
        run = min(max(0.27 * self.lane, self.width(text) / 2 + 5), abs(far - x) / 2)
        return Label(x + run * (1 if right else -1), y + (low - y) * run / abs(far - x) + 2, text,
                     LABEL, "middle", f"t{min(chunks)}" if len(chunks) == 1 else "ink", True, True)

    def arrow(self, step, move, tail, head, number, numbered):
        """An arrow, in two parts if it goes around; and the mark where it ends."""
        period = self.size * self.lane
        shift = period if head[0] < self.low else -period if head[0] > self.high else 0
        at = head[0] + shift, head[1]
        end = marks.short_of(tail, head, 7.0 if move.reduces else 1.5)
        stripes = [f"c{c}" for c in move.chunks] or ["soft"]
        shapes = [Circle(*tail, 2.6, "ink")]
        stem = marks.short_of(tail, end, HEAD - 1)
        for part in self.parts(tail, stem, shift):
            shapes += marks.ribbon(*part, stripes, DASHES.get(move.kind, ()))
        tip = (end[0] + shift, end[1])
        colour = stripes[0] if len(stripes) == 1 else "ink"
        shapes.append(marks.head((stem[0] + shift, stem[1]), tip, colour, hollow=move.channel > 0))
        if shift and numbered and head[1] - tail[1] >= 10 * abs(self.hop(step, move)):
            shapes += self.beside(move, tail, head, shift)
        words = f"{unit(self.flow)} {step}: {sentence(move)}"
        where = ", ".join(map(short_line, move.lines))
        self.scene.add("arrow", *shapes, title=f"{words} ({where})", step=step,
                       move=number)
        if move.reduces:
            self.scene.add("reduction", *marks.plus(*at, "paper"), step=step, move=number)

    def parts(self, tail, end, shift):
        """The straight parts of an arrow: one, or two if it leaves at one edge and enters at the
        other."""
        edge = self.high if shift < 0 else self.low
        if not shift or (end[0] - edge) * shift > 0:
            return [(tail, end)]
        y = tail[1] + (end[1] - tail[1]) * (edge - tail[0]) / (end[0] - tail[0])
        return [(tail, (edge, y)), ((edge + shift, y), (end[0] + shift, end[1]))]

    def beside(self, move, tail, head, shift):
        """At the edges: the rank where an arrow goes on to, and the one that it comes from."""
        edge, way = (self.high, 1) if shift < 0 else (self.low, -1)
        y = tail[1] + (head[1] - tail[1]) * (edge - tail[0]) / (head[0] - tail[0]) + 3
        return [Label(x + 3 * side, y, str(rank), 9, "start" if side > 0 else "end", "soft")
                for rank, x, side in ((move.target, edge, way), (move.source, edge + shift, -way))]

    def local(self, step, rank, y, moves):
        """What a rank does in a step without others: copies as squares, reductions as pluses."""
        wide = min(12.0, 0.8 * self.lane / max(1, len(moves)))
        for i, (number, move) in enumerate(moves):
            x = self.x(rank) + (i - (len(moves) - 1) / 2) * wide
            colour = f"c{move.chunks[0]}" if move.chunks else "soft"
            name = "reduction" if move.reduces else "copy"
            shapes = (marks.plus(x, y, "paper") if move.reduces
                      else marks.square(x, y, colour, min(10.0, 0.8 * wide)))
            if len(moves) == 1:
                shapes.append(Label(x + 9, y + 4, chunk_names(move.chunks, 7), LABEL, "start",
                                    f"t{move.chunks[0]}" if len(move.chunks) == 1 else "ink",
                                    True, True))
            self.scene.add(name, *shapes, step=step, move=number, title=f"{unit(self.flow)} "
                           f"{step}: {sentence(move)} ({short_line(move.lines[0])})")
