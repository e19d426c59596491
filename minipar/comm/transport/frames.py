"""Messages over a byte stream to one peer: headers, matching, and bounded buffering.

A message travels as a header of 24 bytes and its payload. What the receiver has posted a receive
for goes straight into the user's array; what comes early is kept. So that early messages take
bounded memory, and one that nobody receives yet blocks no other:

- a message of up to EAGER bytes is sent at once, as long as what the peer has not yet matched is
  less than WINDOW (the sender's credit; the receiver gives it back with CREDIT frames);
- any other is announced (ASK), and sent (DATA) when its receive has been found (GRANT).

Announcements are numbered by counting on both sides, as frames of a stream arrive in order.
"""

import struct
from collections import deque

EAGER = 2**20  # bytes
WINDOW = 2**22  # bytes of early messages that a rank keeps for one peer
_COST = 64  # bytes that a message takes from the window besides its payload

HEADER = struct.Struct("<QIIQ")  # group, tag, kind, and a number of bytes or of an announcement
_LAST = struct.Struct("<IQ")  # of these, the last two
_KEY = HEADER.size - _LAST.size
_MESSAGE, _ASK, _GRANT, _DATA, _CREDIT, _BYE = range(6)
_NO_KEY = bytes(_KEY)


class Message:
    """A persistent message: one end of it, with its header if it is the sending end."""

    __slots__ = ("view", "nbytes", "key", "header", "link", "sends", "done")

    def __init__(self, view, group, tag, link, sends):
        self.view, self.nbytes, self.link, self.sends = view, len(view), link, sends
        self.header = HEADER.pack(group, tag, _MESSAGE, self.nbytes)
        self.key = self.header[:_KEY]
        self.done = True


class _Early:
    """A message that came before its receive: its bytes, or the number of its announcement."""

    __slots__ = ("data", "number", "nbytes", "complete", "taker")

    def __init__(self, nbytes, number=None):
        self.nbytes, self.number = nbytes, number
        self.data = bytearray(nbytes) if number is None else None
        self.complete, self.taker = False, None


class Link:
    """All that is said between this rank and one peer (both numbered in the world)."""

    def __init__(self, stream, rank, peer):
        self.stream, self.rank, self.peer = stream, rank, peer
        self.left = False  # the peer has said goodbye
        self.lost = False  # the connection has broken
        self.moves = 0  # how often pump() found something to do
        self.unsent = deque()  # (buffers, message or None): frames not wholly written
        self._credit, self._owed = WINDOW, 0
        self._asked, self._asks = {}, 0  # my announcements: number -> message
        self._granted, self._heard = {}, 0  # the peer's: number -> receiving message
        self._posted, self._early = {}, {}  # key -> deque of messages, of _Early
        self._header = memoryview(bytearray(HEADER.size))
        self._place = self._header  # what the next bytes of the stream belong into
        self._filling = None  # the Message or _Early whose payload that is; None: a header
        self._announced = False  # whether the payload was: it has taken no credit then
        self._rest = ()  # what a write that took not all has left

    # Sending

    def send(self, message):
        """Start a sending message."""
        cost = message.nbytes + _COST
        if message.nbytes <= EAGER and cost <= self._credit:
            self._credit -= cost
            self._put((message.header, message.view), message)
        else:
            self._asked[self._asks] = message
            self._asks += 1
            self._put((message.key + _LAST.pack(_ASK, message.nbytes),))

    def say_goodbye(self):
        """Send the last frame: after it the peer may hang up."""
        self._owed = -2**63  # no more credit is given
        self._put((_NO_KEY + _LAST.pack(_BYE, 0),))

    def _put(self, parts, message=None):
        if self.unsent:
            self.unsent.append((parts, message))
        elif not self._write(parts):
            self.unsent.append((self._rest, message))
        elif message is not None:
            message.done = True

    def _write(self, parts):
        """Whether all of `parts` was written; if not, `_rest` is what is left of them."""
        try:
            n = self.stream.write(parts)
        except OSError:
            self.lost, n = True, 0  # what has come before can still be read
        if not n:
            self._rest = parts
            return False
        for i, part in enumerate(parts):
            if n < len(part):
                self._rest = (memoryview(part)[n:], *parts[i + 1:])
                return False
            n -= len(part)
        return True

    def _flush(self):
        """Write what is unsent as far as possible."""
        while self.unsent:
            parts, message = self.unsent[0]
            if not self._write(parts):
                self.moves += self._rest is not parts
                self.unsent[0] = self._rest, message
                return
            self.unsent.popleft()
            self.moves += 1
            if message is not None:
                message.done = True

    # Receiving

    def post(self, message):
        """Start a receiving message."""
        waiting = self._early.get(message.key)
        if waiting is None:
            self._posted.setdefault(message.key, deque()).append(message)
            return
        early = waiting.popleft()
        if not waiting:
            del self._early[message.key]
        self._check(message, early.nbytes)
        if early.number is not None:
            self._grant(early.number, message)
        elif early.complete:
            self._deliver(early, message)
        else:
            early.taker = message

    def pump(self):
        """Write and read what is possible without waiting; counts it in `moves` if it was any."""
        if self.unsent:
            self._flush()
        try:
            while True:
                n = self.stream.read(self._place)
                if not n:
                    return
                self.moves += 1
                if n < len(self._place):
                    self._place = self._place[n:]
                elif self._filling is None:
                    self._begin()
                else:
                    self._end()
        except (EOFError, OSError):
            self.lost = True

    def _begin(self):
        """Act on a header that is complete."""
        kind, n = _LAST.unpack_from(self._header, _KEY)
        self._place, self._announced = self._header, kind == _DATA
        if kind == _MESSAGE:
            key = bytes(self._header[:_KEY])
            self._filling = self._match(key, n)
            if self._filling is None:
                self._filling = self._keep(key, _Early(n))
                self._place = memoryview(self._filling.data)
            else:
                self._place = self._filling.view
        elif kind == _DATA:
            self._filling = self._granted.pop(n)
            self._place = self._filling.view
        elif kind == _ASK:
            key, number = bytes(self._header[:_KEY]), self._heard
            self._heard += 1
            message = self._match(key, n)
            if message is None:
                self._keep(key, _Early(n, number))
            else:
                self._grant(number, message)
        elif kind == _GRANT:
            message = self._asked.pop(n)
            self._put((_NO_KEY + _LAST.pack(_DATA, n), message.view), message)
        elif kind == _CREDIT:
            self._credit += n
        elif kind == _BYE:
            self.left = True
        if self._filling is not None and not len(self._place):
            self._end()

    def _end(self):
        """A payload is complete."""
        filled, self._filling, self._place = self._filling, None, self._header
        if isinstance(filled, Message):
            filled.done = True
            if not self._announced:
                self._give_back(filled.nbytes)
        elif filled.taker is None:
            filled.complete = True
        else:
            self._deliver(filled, filled.taker)

    def _match(self, key, nbytes):
        """The posted receive that a message meets, or None."""
        posted = self._posted.get(key)
        if posted is None:
            return None
        message = posted.popleft()
        if not posted:
            del self._posted[key]
        self._check(message, nbytes)
        return message

    def _keep(self, key, early):
        self._early.setdefault(key, deque()).append(early)
        return early

    def _deliver(self, early, message):
        message.view[:] = early.data
        message.done = True
        self._give_back(early.nbytes)

    def _check(self, message, nbytes):
        if message.nbytes != nbytes:
            raise ValueError(f"rank {self.rank}: a message of {nbytes} bytes from rank "
                             f"{self.peer} meets a receive of {message.nbytes} bytes")

    def _grant(self, number, message):
        self._granted[number] = message
        self._put((_NO_KEY + _LAST.pack(_GRANT, number),))

    def _give_back(self, nbytes):
        self._owed += nbytes + _COST
        if self._owed >= WINDOW // 2:
            self._put((_NO_KEY + _LAST.pack(_CREDIT, self._owed),))
            self._owed = 0
