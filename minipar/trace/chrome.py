"""All ranks' records in one file for chrome://tracing and https://ui.perfetto.dev.

A process of the picture is a rank. Its rows are computation, waiting, and messages, with as many
rows for messages as are in flight together; an arrow joins each send with its receive, and the
runs of collectives are bars of their own. Format: "Trace Event Format", Chromium project.
"""

import json
import os
from pathlib import Path

import numpy as np

from ..context import current
from .clocks import TAG, describe, to_rank_0
from .recorder import unrecorded


def check_path(path):
    """Raise ValueError, in one line, if a trace could not be written to `path`: ask early."""
    path = Path(path)
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{path}: no permission to write")


def write_chrome(path, comm, recorder=None):
    """Gather what all ranks of `comm` recorded, and write it as one JSON file on its rank 0.

    recorder: this rank's; the one that is recording if None. Called by all ranks. Clocks are
    compared once more, for their drift. Raises ValueError if there is no recorder; on rank 0
    OSError if the file cannot be written.
    """
    recorder = current().recorder if recorder is None else recorder
    if recorder is None:
        raise ValueError("nothing is recording, and no recorder was given")
    with unrecorded():
        recorder.align(comm)
        records = _gather(_records(recorder, comm.transport.in_world(comm.rank)), comm)
        if comm.rank == 0:
            with open(path, "w", encoding="utf-8") as file:
                file.write('{"displayTimeUnit": "ms", "otherData": ' +
                           json.dumps(_about(records)) + ', "traceEvents": [')
                for i, event in enumerate(chrome_events(records)):
                    file.write((",\n" if i else "\n") + json.dumps(event))
                file.write("\n]}\n")


def _records(recorder, rank):
    return {"rank": rank, "samples": recorder.samples, "spans": recorder.spans,
            "messages": recorder.messages, "runs": recorder.runs, "summary": recorder.summary()}


def _gather(records, comm):
    """The records of all ranks in order, on rank 0; each travels as JSON, its size first."""
    data = np.frombuffer(json.dumps(records).encode(), np.uint8)
    sizes = comm.all_gather(np.array([data.size]))
    if comm.rank:
        comm.send(data, 0, TAG)
        return None
    out = [json.loads(data.tobytes())]
    for peer in range(1, comm.size):
        data = np.empty(sizes[peer, 0], np.uint8)
        comm.recv(data, peer, TAG)
        out.append(json.loads(data.tobytes()))
    return out


def _about(records):
    """What the file says of itself."""
    return {"made_by": "minipar",
            "clocks": [dict(rank=r["rank"], **describe(r["samples"])) for r in records],
            "summaries": [dict(rank=r["rank"], **r["summary"]) for r in records]}


def chrome_events(records):
    """Yield the trace events of all ranks' records, as dicts.

    records: one dict a rank: rank, samples, spans, messages, runs (see Recorder). Times become
    microseconds of rank 0's clock since the first event.
    """
    clocks = [to_rank_0(record["samples"]) for record in records]
    begins = [clock(event[2 if kind == "spans" else -2])
              for record, clock in zip(records, clocks)
              for kind in ("spans", "messages", "runs") for event in record[kind]]
    origin, sent, received = min(begins, default=0), {}, {}
    for record, clock in zip(records, clocks):
        def since(time):
            return clock(time) - origin
        rows = []  # of this rank's picture: their names
        yield from _computation(record, since, rows)
        yield from _messages(record, since, rows, sent, received)
        yield from _runs(record, since)
        yield from _names(record["rank"], rows)
    for number, message in enumerate(sorted(sent.keys() & received.keys())):
        # An arrow leaves where the send begins, and arrives just before the receive's end.
        for phase, (pid, tid, begin, end) in ("s", sent[message]), ("f", received[message]):
            moment = begin if phase == "s" else max(begin, end - 1)
            yield dict(ph=phase, cat="message", name="message", id=number, pid=pid, tid=tid,
                       ts=moment / 1e3, **({"bp": "e"} if phase == "f" else {}))


def _bar(rank, row, category, name, begin, end, **args):
    return dict(ph="X", cat=category, name=name, pid=rank, tid=row, ts=begin / 1e3,
                dur=(end - begin) / 1e3, args=args)


def _computation(record, clock, rows):
    """The rows of computation and of waiting: calls lie inside calls."""
    for name, waits in (("computation", False), ("waiting", True)):
        spans = [(clock(begin), clock(end), category, what, peers)
                 for category, what, begin, end, peers in record["spans"]
                 if (category == "wait") is waits]
        for lane in _lanes(spans, nested=True) or [[]]:
            for begin, end, category, what, peers in lane:
                yield _bar(record["rank"], len(rows), category, what, begin, end,
                           **({"peers": peers} if waits else {}))
            rows.append(name)


def _messages(record, clock, rows, sent, received):
    """The rows of sends and of receives; sent, received: {message: (rank, row, begin, end)}."""
    rank, flights = record["rank"], {flight: name for flight, name, *_ in record["runs"]}
    for sends, name, ends in ((True, "sends", sent), (False, "receives", received)):
        messages = [(clock(m[-2]), clock(m[-1]), *m[1:-2]) for m in record["messages"]
                    if m[0] is sends]
        for lane in _lanes(messages):
            for begin, end, peer, nbytes, tag, number, group, turn, flight in lane:
                source, target = (rank, peer) if sends else (peer, rank)
                message = f"{group}:{source}>{target}:{tag}:{number}"
                ends[message] = rank, len(rows), begin, end
                args = dict(message=message, bytes=nbytes, peer=peer, tag=tag)
                if flight in flights:
                    args.update(collective=flights[flight], round=turn)
                what = f"send to {peer}" if sends else f"receive from {peer}"
                yield _bar(rank, len(rows), "message", what, begin, end, **args)
            rows.append(name)


def _runs(record, clock):
    """Collectives, which overlap: each has an id of its own and needs no row."""
    rank = record["rank"]
    for flight, name, nbytes, begin, end in record["runs"]:
        for phase, moment in (("b", begin), ("e", end)):
            yield dict(ph=phase, cat="collective", name=name, id=f"{rank}.{flight}", pid=rank,
                       tid=0, ts=clock(moment) / 1e3, args={"bytes": nbytes})


def _names(rank, rows):
    """What the rank and its rows are called, and their order."""
    facts = [("process_name", 0, "name", f"rank {rank}"),
             ("process_sort_index", 0, "sort_index", rank)]
    for row, name in enumerate(rows):
        again = rows[:row].count(name)
        facts += [("thread_name", row, "name", f"{name} {again + 1}" if again else name),
                  ("thread_sort_index", row, "sort_index", row)]
    for name, row, key, value in facts:
        yield dict(ph="M", name=name, pid=rank, tid=row, args={key: value})


def _lanes(items, nested=False):
    """Spread (begin, end, ...) over as few rows as hold them without overlap, in time's order.

    nested: an item may lie inside another of its row, as calls do.
    """
    # An outer item ends, and so was recorded, after those inside it.
    order = sorted(range(len(items)), key=lambda i: (items[i][0], -items[i][1], -i))
    lanes, open_ends = [], []
    for item in (items[i] for i in order):
        begin, end = item[:2]
        for lane, ends in zip(lanes, open_ends):
            while ends and ends[-1] <= begin:
                ends.pop()
            if not ends or nested and end <= ends[-1]:
                break
        else:
            lane, ends = [], []
            lanes.append(lane)
            open_ends.append(ends)
        lane.append(item)
        ends.append(end)
    return lanes
