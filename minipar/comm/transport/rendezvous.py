"""How ranks that are processes find each other: by one address that all of them know.

Rank 0 listens there. Every rank (rank 0 too) connects, says who it is and the job's token, and
then they exchange what they need to know: `exchange(mine)` is an all-gather of small JSON values
through rank 0. Last, every pair makes its own connection.

The token keeps strangers and ranks of other jobs out; it travels in clear. Nothing that comes
over these connections is ever executed.
"""

import hmac
import json
import socket
import struct
import threading
import time

PATIENCE = 300.0  # seconds that ranks wait for each other to be started
_HELLO = 10.0  # seconds for a stranger to say who he is
_LONGEST = 2**24  # bytes of one value


def send(sock, value):
    """Send a JSON value over a blocking socket."""
    data = json.dumps(value).encode()
    sock.sendall(struct.pack("<I", len(data)) + data)


def receive(sock):
    """Receive a JSON value. Raises EOFError at the end, ValueError if it is none."""
    length, = struct.unpack("<I", take(sock, 4))
    if length > _LONGEST:
        raise ValueError(f"a value of {length} bytes")
    return json.loads(take(sock, length))


def take(sock, n):
    """Receive n bytes over a blocking socket."""
    data = bytearray(n)
    place = memoryview(data)
    while place:
        got = sock.recv_into(place)
        if not got:
            raise EOFError
        place = place[got:]
    return data


def greeted(sock, token):
    """The hello of whoever has just connected; None if he has not the token or says nothing."""
    sock.settimeout(_HELLO)
    try:
        hello = receive(sock)
        if isinstance(hello, dict) and hmac.compare_digest(str(hello.pop("token")), token):
            return hello
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        pass
    sock.close()
    return None


def listen(host, port=0, backlog=1024):
    """A listening socket. Raises RuntimeError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise RuntimeError(f"rank 0 cannot listen on {host}:{port} "
                           f"({error.strerror or error})") from None


def _serve(listener, size, token):
    """Rank 0's side, in a thread that ends when all have met."""
    peers = {}
    with listener:
        while len(peers) < size:
            sock, _ = listener.accept()
            hello = greeted(sock, token)
            if hello is None:
                continue
            rank, wrong = hello.get("rank"), None
            if hello.get("size") != size:
                wrong = f"rank {rank} was told of {hello.get('size')} ranks, rank 0 of {size}"
            elif rank in peers:
                wrong = f"there are two ranks {rank}"
            if wrong:
                for other in (sock, *peers.values()):
                    send(other, {"error": wrong})
                time.sleep(1.0)  # for them to read it
                return
            sock.settimeout(PATIENCE)
            peers[rank] = sock
    try:
        while True:
            table = [receive(peers[rank]) for rank in range(size)]
            for sock in peers.values():
                send(sock, {"table": table})
    except (OSError, EOFError, ValueError):
        for sock in peers.values():  # all have met and hung up, or one is gone
            sock.close()


class Meeting:
    """One rank's connection to the meeting, as a context manager."""

    def __init__(self, rank, size, host, port, token="", listener=None):
        self.rank, self.size, self.token = rank, size, token
        if rank == 0:
            listener = listener or listen(host, port)
            port = listener.getsockname()[1]
            threading.Thread(target=_serve, args=(listener, size, token), daemon=True).start()
        self._where = f"{host}:{port}"
        self._socket = self._connect(host, port)
        self.host = self._socket.getsockname()[0]  # the address at which this rank can be found
        send(self._socket, {"token": token, "rank": rank, "size": size})

    def _connect(self, host, port):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return socket.create_connection((host, port), timeout=PATIENCE)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"rank {self.rank} cannot reach rank 0 at {self._where} "
                                       f"({error})") from None
            time.sleep(0.05)

    def exchange(self, mine):
        """The JSON values that the ranks give, in the order of ranks."""
        try:
            send(self._socket, mine)
            answer = receive(self._socket)
        except TimeoutError:
            raise RuntimeError(f"rank {self.rank}: not all of {self.size} ranks have come to "
                               f"{self._where} within {PATIENCE:.0f} s") from None
        except (OSError, EOFError):
            raise RuntimeError(f"rank {self.rank} of {self.size} lost the meeting at "
                               f"{self._where}: another token, or a rank that failed") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["table"]

    def connect_pairs(self):
        """A connected socket to every other rank: {rank: socket}."""
        with listen(self.host) as listener:
            addresses = self.exchange([self.host, listener.getsockname()[1]])
            sockets = {}
            for peer in range(self.rank):
                sockets[peer] = socket.create_connection(addresses[peer], timeout=PATIENCE)
                send(sockets[peer], {"token": self.token, "rank": self.rank})
            listener.settimeout(PATIENCE)
            while len(sockets) < self.size - 1:
                sock, _ = listener.accept()
                hello = greeted(sock, self.token)
                if hello is not None and hello.get("rank") in range(self.rank + 1, self.size):
                    sockets[hello["rank"]] = sock
        return sockets

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._socket.close()
