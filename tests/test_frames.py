"""Messages over byte streams and rings, alone: no processes, no sockets."""

import random
import socket
import struct

import numpy as np
import pytest

from minipar.comm.transport import frames, shared
from minipar.comm.transport.frames import EAGER, WINDOW, Link, Message


class Pipe:
    """One direction of a stream that takes and gives a few bytes at a time."""

    def __init__(self, draw, most, room):
        self.data, self.draw, self.most, self.room = bytearray(), draw, most, room


class Stream:
    def __init__(self, outgoing, incoming):
        self.outgoing, self.incoming = outgoing, incoming

    def write(self, parts):
        pipe = self.outgoing
        n = min(pipe.draw.randint(0, pipe.most), pipe.room - len(pipe.data))
        taken = b"".join(bytes(part) for part in parts)[:n]
        pipe.data += taken
        return len(taken)

    def read(self, place):
        pipe = self.incoming
        n = min(len(place), len(pipe.data), pipe.draw.randint(0, pipe.most))
        place[:n] = pipe.data[:n]
        del pipe.data[:n]
        return n


def pair(seed=0, most=10**9, room=10**9):
    draw = random.Random(seed)
    a, b = Pipe(draw, most, room), Pipe(draw, most, room)
    return Link(Stream(a, b), 0, 1), Link(Stream(b, a), 1, 0)


def message(link, array, tag, sends, group=0):
    return Message(memoryview(array.view(np.uint8)), group, tag, link, sends)


def post(link, item):
    item.done = False
    (link.send if item.sends else link.post)(item)


def early_bytes(link):
    return sum(len(e.data) for queue in link._early.values() for e in queue if e.data is not None)


@pytest.mark.parametrize("seed", range(12))
def test_messages_of_any_size_order_and_fragmentation_arrive_in_order_of_their_tags(
        seed, monkeypatch):
    monkeypatch.setattr(frames, "EAGER", 200)
    monkeypatch.setattr(frames, "WINDOW", 1000)
    draw = random.Random(seed)
    links = pair(seed, most=draw.choice([1, 30, 5000]), room=draw.choice([40, 400, 10**6]))
    sizes = [0, 1, 23, 24, 25, 199, 200, 201, 700]
    sends, receives, actions = [], [], []
    for number in range(60):
        side, key, n = draw.randrange(2), (draw.randrange(2), draw.randrange(3)), draw.choice(sizes)
        data = np.full(n, number, np.uint8)
        target = np.full(n + 2, 99, np.uint8)
        sends.append((side, key, message(links[side], data, key[1], True, key[0])))
        receives.append((1 - side, key, message(links[1 - side], target[:n], key[1], False,
                                                key[0]), target, number))
    # Any interleaving that keeps the order of each (side, key).
    for items in (sends, receives):
        actions.append([item[2] for item in items])
    order = [draw.randrange(2) for _ in range(400)]
    order += [0] * 60 + [1] * 60
    for which in order:
        if actions[which]:
            item = actions[which].pop(0)
            post(item.link, item)
        links[draw.randrange(2)].pump()
    for _ in range(60_000):
        if all(item[2].done for item in sends + receives):
            break
        for link in links:
            link.pump()
    for *_, item, target, number in receives:
        assert item.done and (target[:-2] == number).all() and (target[-2:] == 99).all()
    assert not any(link._early or link._posted or link._asked or link._granted
                   or link.unsent for link in links)


@pytest.mark.parametrize("n", [1000, EAGER, EAGER + 1])
def test_early_messages_take_bounded_memory_and_block_no_later_one(n):
    left, right = pair()
    count = 20 if n > 1000 else 3 * WINDOW // (n + 64)
    data = np.arange(n, dtype=np.uint8)
    first = [message(left, data, 1, True) for _ in range(count)]
    last = message(left, np.arange(5.0), 2, True)
    for item in (*first, last):
        post(left, item)
    right.pump()
    kept = sum(len(queue) for queue in right._early.values())
    assert early_bytes(right) <= WINDOW and kept == count + 1
    assert sum(item.done for item in first) < count
    wanted = np.empty(5)
    receive = message(right, wanted, 2, False)
    post(right, receive)
    for _ in range(2):
        left.pump()
        right.pump()
    assert receive.done and (wanted == np.arange(5)).all()
    for _ in range(count):
        target = np.zeros(n, np.uint8)
        receive = message(right, target, 1, False)
        post(right, receive)
        for _ in range(3):
            left.pump()
            right.pump()
        assert receive.done and (target == data).all()
    assert all(item.done for item in first) and early_bytes(right) == 0
    assert right._owed + left._credit == WINDOW  # all credit is back or on its way


@pytest.mark.parametrize("posted_first", [False, True])
@pytest.mark.parametrize("lengths", [(24, 40), (40, 24), (2 * EAGER, 8), (8, 2 * EAGER), (0, 8)])
def test_ends_of_a_message_of_different_length_are_refused_with_their_bytes(lengths,
                                                                            posted_first):
    left, right = pair()
    send = message(left, np.zeros(lengths[0], np.uint8), 0, True)
    receive = message(right, np.zeros(lengths[1], np.uint8), 0, False)
    with pytest.raises(ValueError, match=f"rank 1: a message of {lengths[0]} bytes from rank 0 "
                                         f"meets a receive of {lengths[1]} bytes"):
        if posted_first:
            post(right, receive)
        post(left, send)
        right.pump()
        post(right, receive)


def test_a_goodbye_is_the_last_frame_and_comes_after_everything_before_it():
    left, right = pair(most=7)
    item = message(left, np.arange(100.0), 0, True)
    post(left, item)
    left.say_goodbye()
    while not right.left:
        left.pump()
        right.pump()
    target = np.empty(100)
    receive = message(right, target, 0, False)
    post(right, receive)
    assert receive.done and (target == np.arange(100)).all() and not left.unsent


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_gives_back_the_bytes_that_were_written_whatever_the_pieces(seed):
    draw, size = random.Random(seed), 1024
    memory = [memoryview(bytearray(128 + size)) for _ in range(2)]
    flag = memoryview(bytearray(8)).cast("Q")
    ends = tcp_pair()
    try:
        left = shared.RingStream(shared.Ring(memory[0], size), shared.Ring(memory[1], size), flag,
                                 ends[0])
        right = shared.RingStream(shared.Ring(memory[1], size), shared.Ring(memory[0], size), flag,
                                  ends[1])
        data = random.Random(seed).randbytes(40_000)
        sent, got = 0, bytearray()
        while len(got) < len(data):
            parts, at = [], sent
            for _ in range(draw.randrange(1, 4)):
                parts.append(memoryview(data)[at:at + draw.choice([0, 1, 24, 500, 3000])])
                at += len(parts[-1])
            wrote = left.write(parts)
            assert 0 <= wrote <= at - sent and wrote + sent - len(got) <= size
            sent += wrote
            place = bytearray(draw.choice([1, 24, 700, 2000]))
            n = right.read(memoryview(place))
            got += place[:n]
        assert bytes(got) == data
        assert left.read(memoryview(bytearray(10))) == 0  # nothing came the other way
    finally:
        for end in ends:
            end.close()


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


def test_a_writer_wakes_a_reader_that_sleeps_and_only_then():
    left, right = tcp_pair()
    with left, right:
        memory = [memoryview(bytearray(128 + 64)) for _ in range(2)]
        sleeps = memoryview(bytearray(8)).cast("Q")
        stream = shared.RingStream(shared.Ring(memory[0], 64), shared.Ring(memory[1], 64), sleeps,
                                   left)
        right.settimeout(5)
        stream.write([b"one"])
        sleeps[0] = 1
        stream.write([b"two"])
        stream.write([b"three"])  # has been called already
        assert right.recv(1) == b"!" and sleeps[0] == 0
        right.setblocking(False)
        with pytest.raises(BlockingIOError):
            right.recv(1)
        assert stream.woken()  # nothing to read is no hang-up
        right.close()
        assert not stream.woken()


@pytest.mark.parametrize("ranks", [2, 3, 8, 16, 64, 65, 1000])
def test_rings_of_a_machine_stay_within_64_mib_and_are_left_out_where_they_would_be_tiny(ranks):
    size, total = shared.ring_size(ranks)
    assert total <= 2**26
    if size:
        assert size & (size - 1) == 0 and size >= 2**14 and total >= ranks * ranks * size
    assert bool(size) == (ranks < 64)


def test_the_parts_of_a_segment_do_not_overlap_and_both_ends_see_the_same_ring():
    ranks, size = [3, 5, 6], 2**14
    _, total = shared.ring_size(3)
    memory = bytearray(total)
    views = {r: shared.Segment(memory, r, ranks, ranks, size) for r in ranks}
    number = 1
    for a in ranks:
        for b in ranks:
            part = views[a]._part(a, b)
            assert not any(part)
            part[:] = struct.pack("B", number) * len(part)
            assert views[b]._part(a, b) == part
            number += 1
    assert not any(views[r]._flag(r)[0] for r in ranks)
