"""Byte streams to one peer: a TCP socket, the simplest thing that `frames.Link` runs over.

A stream writes and reads what it can at once and never blocks. `shared.py` has another one.
"""

import socket

_STAGE = 2**16  # bytes read at once, so that a small message costs one system call


class SocketStream:
    """A connected TCP socket as a stream."""

    name = "sockets"
    wakes = False  # the socket carries the bytes, and not only calls to wake up

    def __init__(self, sock):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._stage = memoryview(bytearray(_STAGE))
        self._from = self._to = 0  # what of the stage has not been read yet
        if not hasattr(sock, "sendmsg"):  # Windows
            self.write = self._write_one_by_one

    def write(self, parts):
        """Write the buffers `parts`, one after another; returns how many bytes were taken.

        Raises OSError if the connection is broken.
        """
        try:
            return self.socket.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            return 0

    def _write_one_by_one(self, parts):
        written = 0
        for part in parts:
            try:
                n = self.socket.send(part)
            except (BlockingIOError, InterruptedError):
                break
            written += n
            if n < len(part):
                break
        return written

    def read(self, place):
        """Fill the memoryview `place` as far as bytes have come; returns how many.

        Raises EOFError if the peer has closed the connection, OSError if it is broken.
        """
        have = self._to - self._from
        if not have:
            direct = len(place) >= _STAGE
            try:
                have = self.socket.recv_into(place if direct else self._stage)
            except (BlockingIOError, InterruptedError):
                return 0
            if not have:
                raise EOFError
            if direct:
                return have
            self._from, self._to = 0, have
        n = min(have, len(place))
        place[:n] = self._stage[self._from:self._from + n]
        self._from += n
        return n
