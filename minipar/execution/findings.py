"""What the emulator has found wrong, in words: kernel, block, threads, variable, source line."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

CALLERS = 12
_OWN = ("emulated.h", "launch.cpp")  # files whose lines are nobody's business


class Finding(ctypes.Structure):
    """One thing found wrong; native/emulator.h has the same structure."""

    _fields_ = [*((n, ctypes.c_int) for n in (
        "kind", "access", "other_access", "block", "thread", "other_block", "other_thread",
        "line")),
        ("mask", ctypes.c_uint), ("lane", ctypes.c_int),
        *((n, ctypes.c_uint64) for n in ("bytes", "size", "unit")), ("offset", ctypes.c_int64),
        ("pc", ctypes.c_uint32), ("other_pc", ctypes.c_uint32),
        ("callers", ctypes.c_uint32 * CALLERS), ("name", ctypes.c_char * 64)]


KINDS = ("race", "uninitialised", "outside", "wild", "constant", "misaligned", "stack", "diverged",
         "not_in_mask", "absent_lane", "waits", "fault", "trap", "assertion", "too_much_shared")
_OPERATIONS = ("__syncwarp", "a vote", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
               "__shfl_xor_sync", "__match_any_sync")
_READY, _AT_BARRIER, _IN_WARP, _DONE = range(4)
_DOES = ("reads it", "writes it", "updates it atomically")
_DID = ("has read it", "has written it", "has updated it atomically")


class Lines:
    """Source lines of code positions in a library, from its debugging information."""

    def __init__(self, library):
        self._library, self._known = library, {}
        self._tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")

    def _frames(self, pc):
        """["file:line"] of one position, innermost first; the emulator's own are left out."""
        if pc not in self._known:
            self._known[pc] = self._ask(pc)
        return self._known[pc]

    def _ask(self, pc):
        if self._tool is None:
            return [f"+{pc:#x} (there is no addr2line that tells the line)"]
        done = subprocess.run([self._tool, "-i", "-e", str(self._library), hex(pc - 1)],
                              capture_output=True, text=True)
        lines = re.findall(r"^(.*):(\d+)", done.stdout, re.M)
        return [f"{Path(path).name}:{line}" for path, line in lines
                if not path.startswith(("/usr/", "?")) and Path(path).name not in _OWN]

    def __call__(self, pc, callers=()):
        """Where a position is: "file:line", and whence that was called."""
        frames = list(self._frames(pc)) if pc else []
        for caller in reversed([c for c in callers if c]):
            frames += self._frames(caller)
        return ", called at ".join(frames) or "an unknown line"


def _ranges(numbers):
    """[0, 1, 2, 5] -> "0-2, 5"; of many pieces the first and the last."""
    out, numbers = [], sorted(numbers)
    while numbers:
        n = 1
        while n < len(numbers) and numbers[n] == numbers[0] + n:
            n += 1
        out.append(f"{numbers[0]}" if n == 1 else f"{numbers[0]}-{numbers[n - 1]}")
        numbers = numbers[n:]
    return ", ".join(out if len(out) < 8 else [*out[:3], "...", out[-1]])


def _variable(f):
    """What an access touches: "`s`, element 3 of 64"."""
    name, unit = f.name.decode(), max(1, f.unit)
    if name.startswith("a "):
        return name
    if unit == 1:
        return f"`{name}`, byte {f.offset} of {f.size}"
    return f"`{name}`, element {f.offset // unit} of {f.size // unit}"


class Describer:
    """Turns findings of one launch into text.

    state: state(thread) -> (status, operation, mask, (pc, callers...)) of a thread when the
           launch ended.
    """

    def __init__(self, lines, grid, block, state):
        self._lines, self._grid, self._block, self._state = lines, grid, block, state

    def __call__(self, f):
        return getattr(self, KINDS[f.kind])(f)

    def _thread(self, thread, block):
        def point(i, size):
            x, y, z = i % size[0], i // size[0] % size[1], i // size[0] // size[1]
            if size[2] > 1:
                return f"({x}, {y}, {z})"
            return f"({x}, {y})" if size[1] > 1 else f"{i}"
        return f"thread {point(thread, self._block)} of block {point(block, self._grid)}"

    def _doer(self, f):
        return f"{self._thread(f.thread, f.block)} {_DOES[f.access]}"

    def _at(self, f):
        return self._lines(f.pc, f.callers)

    def race(self, f):
        if f.block != f.other_block:
            why = "blocks run in any order: atomic operations, or another kernel after this one"
        elif f.thread // 32 == f.other_thread // 32:
            why = "no __syncthreads() or __syncwarp() lies between the two"
        else:
            why = "no __syncthreads() lies between the two"
        return (f"race on {_variable(f)}\n"
                f"    {self._doer(f)} at {self._at(f)}\n"
                f"    {self._thread(f.other_thread, f.other_block)} {_DID[f.other_access]} at "
                f"{self._lines(f.other_pc)}\n    {why}")

    def uninitialised(self, f):
        return (f"uninitialised shared memory: {_variable(f)}\n"
                f"    {self._doer(f)} at {self._at(f)}\n"
                f"    no thread of this block has written it")

    def outside(self, f):
        name, unit = f.name.decode(), max(1, f.unit)
        of = f"{f.size // unit:,} elements" if unit > 1 else f"{f.size:,} bytes"
        index = f"{name}[{f.offset // unit}]" if unit > 1 else f"byte {f.offset} of `{name}`"
        return (f"out of bounds: {index}, where `{name}` has {of}\n"
                f"    {self._doer(f)} at {self._at(f)}")

    def wild(self, f):
        address = f.offset % 2**64
        return (f"out of bounds: address {address:#x}{' (null)' * (address < 4096)}, which is in "
                f"no array\n    {self._doer(f)} at {self._at(f)}")

    def constant(self, f):
        return (f"{_variable(f)} is written, but the kernel's parameter is const\n"
                f"    {self._doer(f)} at {self._at(f)}")

    def misaligned(self, f):
        return (f"misaligned access: {f.bytes} bytes at byte {f.offset} of `{f.name.decode()}`, "
                f"which is no multiple of {f.bytes}\n    {self._doer(f)} at {self._at(f)}")

    def stack(self, f):
        return (f"a local variable of thread {f.other_thread} is used by another thread\n"
                f"    {self._doer(f)} at {self._at(f)}")

    def _where(self, threads):
        """One line for each group of threads that are in the same place."""
        groups = {}
        for t in threads:
            status, operation, mask, places = self._state(t)
            key = {_DONE: (0, 0, ()), _READY: (0, 0, places), _AT_BARRIER: (0, 0, places)}.get(
                status, (operation, mask, places))
            groups.setdefault((status, *key), []).append(t)
        out = []
        for (status, operation, mask, places), members in groups.items():
            at = self._lines(places[0], places[1:]) if places else ""
            who = f"    thread{'s' * (len(members) > 1)} {_ranges(members)}: "
            if status == _DONE:
                out.append(who + "returned")
            elif status == _AT_BARRIER:
                out.append(who + f"at __syncthreads(), {at}")
            elif status == _IN_WARP:
                out.append(who + f"in {_OPERATIONS[operation]} with mask {mask:#x}, "
                                 f"{at}")
            else:
                out.append(who + f"in a loop that waits, {at}")
        return "\n".join(out)

    def diverged(self, f):
        n = self._block[0] * self._block[1] * self._block[2]
        states = [self._state(t) for t in range(n)]
        name = "__syncthreads()"
        if waiting := [t for t, s in enumerate(states) if s[0] == _IN_WARP]:
            warp = waiting[0] // 32
            name = f"{_OPERATIONS[states[waiting[0]][1]]} in warp {warp}"
            threads = range(32 * warp, min(n, 32 * warp + 32))
        else:
            threads = range(n)
        reached = ("is reached in different places" if all(s[0] == _AT_BARRIER for s in states)
                   else "is not reached")
        return (f"divergent {name}: it {reached} by all threads of block {f.block}\n"
                f"{self._where(threads)}")

    def not_in_mask(self, f):
        return (f"{_OPERATIONS[f.access]} with mask {f.mask:#x}, which leaves out lane {f.lane} "
                f"that calls it\n    {self._thread(f.thread, f.block)} at {self._at(f)}")

    def absent_lane(self, f):
        why = ("is not in the mask", "has returned", "does not exist")[f.other_access]
        return (f"{_OPERATIONS[f.access]} with mask {f.mask:#x} reads lane {f.lane}, which {why}\n"
                f"    {self._thread(f.thread, f.block)}, lane {f.thread % 32}, at {self._at(f)}")

    def waits(self, f):
        n = self._block[0] * self._block[1] * self._block[2]
        return (f"block {f.block} waits for ever: all its threads wait for one another, or for a "
                f"block that has not begun\n{self._where(range(n))}")

    def fault(self, f):
        what = ("an integer is divided by zero", f"local variables need more than {f.size:,} bytes",
                "memory that does not exist is accessed")[f.access]
        return f"{what}\n    {self._thread(f.thread, f.block)} at {self._at(f)}"

    def trap(self, f):
        return f"__trap()\n    {self._thread(f.thread, f.block)} at {self._at(f)}"

    def assertion(self, f):
        return (f"assertion failed: {f.name.decode()}\n"
                f"    {self._thread(f.thread, f.block)} at {self._at(f)}")

    def too_much_shared(self, f):
        return f"{f.size:,} bytes of __shared__ variables > 49,152 that a block can have"
