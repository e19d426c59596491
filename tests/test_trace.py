"""Records of ranks: what is in them, how clocks are brought together, and the file of all ranks."""

import json
import random
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

import minipar as mp
from launch import mpirun
from minipar import nn, optim, trace
from minipar.comm import run_threads, world
from minipar.comm.engine import Engine
from minipar.comm.transport.base import Lone
from minipar.context import current
from minipar.parallel import DistributedDataParallel
from minipar.tensor import Tensor
from minipar.trace import clocks
from minipar.trace.chrome import chrome_events

STEPS = 3
PROGRAM = Path(__file__).parent / "mpi_programs" / "traced.py"


def small_model():
    """(a data-parallel model with one bucket a parameter, its optimizer).

    After one step: in the first the ranks agree on the order of their buckets.
    """
    mp.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model = DistributedDataParallel(model, gradient="sum", algorithm="ring", bucket_cap_mb=1e-6)
    optimizer = optim.AdamW(model.parameters())
    train_step(model, optimizer)
    return model, optimizer


def train_step(model, optimizer):
    with trace.span("step"):
        optimizer.zero_grad()
        x = np.arange(12, dtype=np.float32).reshape(2, 6) + world().rank
        (model(Tensor(x)) ** 2).sum().backward()
        optimizer.step()


def traced(path):
    """As one rank: train and write the trace; returns (recorder, flat gradient's length)."""
    model, optimizer = small_model()
    with trace.record() as recorder:
        for _ in range(STEPS):
            train_step(model, optimizer)
    trace.write_chrome(path, world(), recorder)
    return recorder, sum(flat.reduced.size for flat in model._buckets.flats)


def load(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def ns(microseconds):
    return round(microseconds * 1000)


def rows(events):
    """{(pid, tid): [(begin, end, event)]} of the bars, in ns and in the file's order."""
    out = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            assert e["dur"] >= 0
            out[e["pid"], e["tid"]].append((ns(e["ts"]), ns(e["ts"]) + ns(e["dur"]), e))
    return out


def assert_nested(bars):
    """Every bar lies inside those that are open when it begins, and follows those that ended."""
    open_bars = []
    for begin, end, event in bars:
        while open_bars and open_bars[-1] <= begin:
            open_bars.pop()
        assert not open_bars or end <= open_bars[-1], event
        open_bars.append(end)
    begins = [begin for begin, *_ in bars]
    assert begins == sorted(begins)


def message_ends(events):
    """{message: event} of the sends, and of the receives; each message once on each side."""
    out = {}, {}
    for e in events:
        if e.get("cat") == "message" and e["ph"] == "X":
            side = out[e["name"].startswith("receive")]
            assert e["args"]["message"] not in side, e
            side[e["args"]["message"]] = e
    return out


def assert_well_formed(file, n):
    """What holds for the trace of any job of n ranks."""
    events = file["traceEvents"]
    assert {e["pid"] for e in events} == set(range(n))
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {rank: f"rank {rank}" for rank in range(n)}
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    bars = rows(events)
    assert set(bars) <= named
    for row in bars.values():
        assert_nested(row)
    sends, receives = message_ends(events)
    assert sends.keys() == receives.keys()
    # Rank 0's clock is exact; any other time is off by at most its rank's uncertainty.
    uncertain = {c["rank"]: ns(c["uncertainty_us"]) + 2 for c in file["otherData"]["clocks"]}
    for message, send in sends.items():
        receive = receives[message]
        assert send["args"]["bytes"] == receive["args"]["bytes"]
        assert send["args"]["peer"] == receive["pid"] and receive["args"]["peer"] == send["pid"]
        slack = uncertain[send["pid"]] + uncertain[receive["pid"]]
        assert ns(receive["ts"]) + ns(receive["dur"]) + slack >= ns(send["ts"])
    assert_arrows(events, bars, sends, receives)
    begins, ends = ({(e["pid"], e["id"], e["name"]): e["ts"] for e in events if e["ph"] == phase}
                    for phase in "be")
    assert begins.keys() == ends.keys() and all(begins[k] <= ends[k] for k in begins)


def assert_arrows(events, bars, sends, receives):
    """Each message has one arrow, which starts in the bar of its send and ends in the other's."""
    starts, ends = ({e["id"]: e for e in events if e["ph"] == phase} for phase in "sf")
    assert starts.keys() == ends.keys() and len(starts) == len(sends)
    assert sum(e["ph"] in "sf" for e in events) == 2 * len(starts)
    for number, start in starts.items():
        end = ends[number]
        assert end["bp"] == "e" and type(number) is int
        found = [[e["args"]["message"] for begin, stop, e in bars[at["pid"], at["tid"]]
                  if begin <= ns(at["ts"]) < max(stop, begin + 1)] for at in (start, end)]
        assert found[0] == found[1] and len(found[0]) == 1, (start, end)


@pytest.mark.parametrize("eager_bytes", [0, 1024])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_trace_of_a_training_nests_and_matches_every_send_with_its_receive(
        n, eager_bytes, tmp_path):
    path = tmp_path / "trace é.json"
    results = run_threads(traced, n, path, eager_bytes=eager_bytes)
    file = load(path)
    assert_well_formed(file, n)
    sent = sum(e["args"]["bytes"] for e in message_ends(file["traceEvents"])[0].values())
    assert sent == STEPS * 2 * (n - 1) * results[0][1] * 4  # float32; each rank 2n(p-1)/p
    for rank, (recorder, _) in enumerate(results):
        assert recorder.summary() == {k: v for k, v in file["otherData"]["summaries"][rank].items()
                                      if k != "rank"}


def test_the_trace_is_as_well_formed_with_progress_by_a_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIPAR_PROGRESS", "thread")
    test_the_trace_of_a_training_nests_and_matches_every_send_with_its_receive(3, 0, tmp_path)


@pytest.mark.parametrize("n", [2, 3])
def test_the_trace_of_processes_is_as_well_formed(n, tmp_path):
    done = mpirun(n, PROGRAM, tmp_path / "trace.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    file = load(tmp_path / "trace.json")
    assert_well_formed(file, n)
    assert len(message_ends(file["traceEvents"])[0]) == STEPS * 4 * 2 * n * (n - 1)


def test_a_training_step_has_its_calls_operations_buckets_and_update_in_their_places(tmp_path):
    run_threads(traced, 2, tmp_path / "trace.json")
    events = load(tmp_path / "trace.json")["traceEvents"]
    bars = rows(events)[1, 0]  # of rank 1

    def inside(category, name):
        """(category, name) of the bars directly or indirectly inside, per bar of that name."""
        return [[(e["cat"], e["name"]) for b, e_, e in bars if begin <= b and e_ <= end
                 and e is not outer] for begin, end, outer in bars
                if (outer["cat"], outer["name"]) == (category, name)]
    assert inside("forward", "DistributedDataParallel") == STEPS * [
        [("forward", "Sequential"), ("forward", "Linear 0"), ("forward", "ReLU 1"),
         ("forward", "Linear 2")]]
    assert inside("backward", "backward") == STEPS * [
        [("op", name) for name in ("sum", "pow", "linear", "relu", "linear")]]
    steps = inside("user", "step")
    assert len(steps) == STEPS and all(("optimizer", "optimizer") == s[-1] for s in steps)
    runs = [e for e in events if e["ph"] == "b" and e["pid"] == 1]
    assert len(runs) == STEPS * 4  # two weights and two biases, a bucket each
    assert {e["name"] for e in runs} == {"all_reduce ring"}
    assert sum(e["args"]["bytes"] for e in runs) % STEPS == 0


@pytest.mark.parametrize("p", [2, 3, 4])
def test_a_ring_sends_two_n_times_p_minus_1_over_p_bytes_on_every_rank(p):
    def work():
        with trace.record() as recorder:
            world().all_reduce(np.ones(60 * p), algorithm="ring")
        return recorder.summary()
    for summary in run_threads(work, p):
        assert summary["bytes_sent"] == summary["bytes_received"] == 2 * 60 * p * (p - 1) / p * 8
        assert summary["sends"] == summary["receives"] == 2 * (p - 1)


class FakeClock:
    """A clock that is `offset` ns ahead at the start, and gains `ppm` microseconds a second."""

    start = time.perf_counter_ns()

    def __init__(self, offset, ppm):
        self.offset, self.speed = offset, 1 + ppm / 1e6

    def __call__(self):
        return self.offset + int((time.perf_counter_ns() - self.start) * self.speed)

    def true(self, reading):
        return (reading - self.offset) / self.speed


@pytest.mark.parametrize("wrong", [
    [(0, 0), (3_000_000_000, 0), (-7_000_000, 0)],
    [(5_000_000, 400), (-2_000_000_000, -900), (123_456_789_000, 50_000)],
], ids=["offset", "offset and drift"])
def test_clocks_that_differ_agree_within_the_uncertainty_that_is_reported(wrong, tmp_path):
    fakes = [FakeClock(*pair) for pair in wrong]

    def work():
        comm = world()
        recorder = trace.Recorder(fakes[comm.rank])
        recorder.align(comm)
        with recorder:
            for _ in range(5):
                comm.all_reduce(np.ones(100), algorithm="ring")
                time.sleep(0.01)  # lets the clocks drift apart
            trace.write_chrome(tmp_path / "trace.json", comm)
        return recorder
    recorders = run_threads(work, 3)
    file = load(tmp_path / "trace.json")
    assert_well_formed(file, 3)
    for rank in (1, 2):
        recorder, about = recorders[rank], file["otherData"]["clocks"][rank]
        aligned, mine = clocks.to_rank_0(recorder.samples), fakes[rank]
        assert 0 < about["uncertainty_us"] < 1e6
        assert len(recorder.messages) > 20
        for time_ns in (t for message in recorder.messages for t in message[-2:]):
            expected = fakes[0].offset + mine.true(time_ns) * fakes[0].speed
            assert abs(aligned(time_ns) - expected) <= about["uncertainty_us"] * 1e3 + 2
        drift = (fakes[0].speed / mine.speed - 1) * 1e6
        span = recorder.samples[-1][0] - recorder.samples[0][0]
        allowed = 2 * about["uncertainty_us"] * 1e9 / span + 1
        assert abs(about["drift_ppm"] - drift) <= allowed


def test_ranks_that_read_one_clock_need_no_correction():
    if not clocks._identity(time.perf_counter_ns):
        pytest.skip("no way to tell here that processes share a clock")

    def work():
        with trace.record() as recorder:
            recorder.align(world())
        return recorder.samples
    for samples in run_threads(work, 2):
        assert all(own == reference and uncertainty == 0 for own, reference, uncertainty in samples)


def test_aligned_times_keep_their_order():
    draw = random.Random(3)
    for _ in range(50):
        start = draw.randrange(10**12)
        samples = [(start, draw.randrange(10**12), 5)]
        samples.append((start + draw.randrange(1, 10**6), samples[0][1] + draw.randrange(10**6), 9))
        times = sorted(draw.randrange(start, start + 10**6) for _ in range(30))
        aligned = [clocks.to_rank_0(samples)(t) for t in times]
        assert aligned == sorted(aligned)
        assert clocks.to_rank_0(samples)(samples[0][0]) == samples[0][1]
        assert clocks.to_rank_0(samples)(samples[1][0]) == samples[1][1]


def test_messages_of_one_tag_are_numbered_as_they_start_not_as_they_are_seen_complete():
    def work():
        comm = world()
        arrays = [np.zeros(size) for size in (3, 5)]
        with trace.record() as recorder:
            start = comm.isend if comm.rank == 0 else comm.irecv
            works = [start(array, 1 - comm.rank, 7) for array in arrays]
            for item in reversed(works):
                item.wait()
        return [(nbytes, number) for _, _, nbytes, _, number, *_ in recorder.messages]
    for found in run_threads(work, 2, eager_bytes=1024):
        assert sorted(found) == [(24, 0), (40, 1)]


def test_messages_of_a_group_are_not_taken_for_those_of_the_world(tmp_path):
    def work():
        comm = world()
        group = comm.split(0, -comm.rank)  # ranks in the opposite order
        with trace.record():
            first, second = np.zeros(3), np.zeros(5)
            if comm.rank == 0:
                comm.isend(first, 2), group.isend(second, 0)
                comm.recv(first, 2, 1)
            elif comm.rank == 2:
                group.recv(second, 2)
                comm.recv(first, 0)
                comm.send(first, 0, 1)
            comm.barrier()
            trace.write_chrome(tmp_path / "trace.json", comm)
    run_threads(work, 3)
    file = load(tmp_path / "trace.json")
    assert_well_formed(file, 3)
    sizes = [e["args"]["bytes"] for e in message_ends(file["traceEvents"])[1].values()
             if e["pid"] == 2]
    assert {24, 40} <= set(sizes)


def test_recording_changes_no_bit_of_the_training(tmp_path):
    def parameters(recording):
        model, optimizer = small_model()
        with trace.record() if recording else trace.span("not recording"):
            for _ in range(STEPS):
                train_step(model, optimizer)
        return b"".join(p.array.tobytes() for p in model.parameters())
    assert run_threads(parameters, 2, True) == run_threads(parameters, 2, False)


def test_nothing_is_recorded_before_and_after_the_block_or_in_other_threads():
    assert current().recorder is None
    recorder = trace.Recorder()
    elsewhere = []
    model = nn.Linear(2, 2).materialize()

    def use():
        model(mp.tensor([[1.0, 2.0]])).sum().backward()
    use()
    with recorder:
        assert current().recorder is recorder
        assert current().copy().recorder is None
        thread = threading.Thread(target=lambda: (use(), elsewhere.append(current().recorder)))
        thread.start()
        thread.join()
        assert recorder.spans == [] and elsewhere == [None]
        use()
        count = len(recorder.spans)
    use()
    assert current().recorder is None
    assert count == len(recorder.spans) > 0
    assert recorder.messages == [] and recorder.runs == []


def test_a_recorder_entered_again_adds_to_what_it_has_and_gives_the_outer_one_its_place_back():
    inner, outer = trace.Recorder(), trace.Recorder()
    with outer:
        for _ in range(2):
            with inner, trace.span("part"):
                pass
        assert current().recorder is outer
    assert [s[1] for s in inner.spans] == ["part"] * 2 and outer.spans == []


class Odd(Exception):
    pass


def raise_odd(*args):
    raise Odd


def test_an_exception_closes_what_it_leaves_and_the_recording():
    class Bad(nn.Module):
        def forward(self, x):
            raise Odd
    weight = mp.tensor([1.0, 2.0], requires_grad=True)
    weight.register_post_accumulate_grad_hook(raise_odd)
    recorder = trace.Recorder()
    for act in (lambda: Bad()(1), lambda: (weight * 3).exp().sum().backward(), raise_odd):
        with pytest.raises(Odd), recorder, trace.span("outer"):
            act()
    assert current().recorder is None
    names = [(category, name) for category, name, *_ in recorder.spans]
    assert names == [("forward", "Bad"), ("user", "outer"), ("op", "sum"), ("op", "exp"),
                     ("op", "mul"), ("backward", "backward"), ("user", "outer"),
                     ("user", "outer")]
    assert all(begin <= end for _, _, begin, end, _ in recorder.spans)


def test_a_wait_is_recorded_with_what_it_waits_for_and_only_if_there_is_one():
    class Soon:
        name, left, done = "something", 3, False

        def step(self):
            self.left -= 1
            return self.left < 0

        def waits_for(self):
            return 0, {4}
    recorder, engine = trace.Recorder(), Engine(Lone())
    with recorder:
        soon = Soon()
        engine._active.append(soon)
        engine.wait(soon)
        engine.wait(soon)
    assert [(s[0], s[1], s[4]) for s in recorder.spans] == [("wait", "something", (4,))]


def test_the_summary_counts_outermost_calls_without_the_waits_inside_them():
    class Clock:
        now = 0

        def __call__(self):
            return self.now
    clock = Clock()
    recorder = trace.Recorder(clock)

    def spend(seconds, *spans):
        """`seconds` of nothing on both sides of the inner spans."""
        clock.now += int(seconds * 1e9)
        for category, inner, *rest in spans:
            with recorder.span(category, category):
                spend(inner, *rest)
        clock.now += int(seconds * 1e9)
    with recorder:
        spend(1, ("forward", 2, ("forward", 3), ("wait", 0.5)), ("wait", 4),
              ("backward", 5, ("op", 6), ("forward", 7, ("wait", 8))), ("optimizer", 9))
    assert recorder.summary() == {
        "forward_s": 10, "wait_s": 25, "backward_s": 36, "optimizer_s": 18, "other_s": 2,
        "total_s": 91, "sends": 0, "bytes_sent": 0, "receives": 0, "bytes_received": 0}


@pytest.mark.parametrize("seed", range(5))
def test_messages_that_overlap_get_rows_of_their_own_and_no_more_than_they_need(seed):
    draw = random.Random(seed)
    messages = []
    for i in range(60):
        begin = draw.randrange(100)
        messages.append((True, 1, 8, 0, i, "", 0, 0, begin, begin + draw.randrange(1, 20)))
    record = {"rank": 0, "samples": [], "spans": [], "messages": messages, "runs": []}
    bars = rows(chrome_events([record]))
    for row in bars.values():
        assert all(end <= after for (_, end, _), (after, _, _) in zip(row, row[1:]))
    assert sum(map(len, bars.values())) == 60
    assert len(bars) == max(sum(m[-2] <= t < m[-1] for m in messages) for t in range(120))


@pytest.mark.parametrize("seed", range(5))
def test_spans_that_overlap_in_part_are_kept_apart_so_that_each_row_nests(seed):
    draw = random.Random(seed)
    spans = []
    for _ in range(40):
        begin = draw.randrange(50)
        spans.append(("user", "x", begin, begin + draw.randrange(20), ()))
    record = {"rank": 0, "samples": [], "spans": spans, "messages": [], "runs": []}
    bars = rows(chrome_events([record]))
    for row in bars.values():
        assert_nested(row)
    origin = min(begin for _, _, begin, *_ in spans)
    assert sorted((b, e) for row in bars.values() for b, e, _ in row) == sorted(
        (begin - origin, end - origin) for _, _, begin, end, _ in spans)


def test_a_send_without_its_receive_gets_no_arrow():
    message = True, 1, 8, 0, 0, "", 0, 0, 5, 6
    events = list(chrome_events([{"rank": 0, "samples": [], "spans": [], "messages": [message],
                                  "runs": []}]))
    assert [e["ph"] for e in events if e["ph"] != "M"] == ["X"]


def test_recording_cannot_start_in_the_middle_of_a_collective():
    tried = threading.Event()  # till then rank 1 stays away, so that it is in flight

    def work():
        comm = world()
        if comm.rank == 1:
            tried.wait(10)
        pending = comm.all_reduce(np.ones(4), async_op=True)
        if comm.rank == 0:
            with pytest.raises(RuntimeError, match="while an operation is in flight"):
                with trace.record():
                    raise AssertionError("recording began")
            tried.set()
        pending.wait()
    run_threads(work, 2)


def test_writing_without_a_recorder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing is recording"):
        trace.write_chrome(tmp_path / "trace.json", run_threads(world, 1)[0])
    assert not (tmp_path / "trace.json").exists()


def test_a_path_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    trace.check_path(tmp_path / "trace.json")
    trace.check_path("trace.json")
    assert list(tmp_path.iterdir()) == []
    for path, words in ((tmp_path / "no" / "trace.json", f"no folder {tmp_path / 'no'}"),
                        (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match="^[^\n]*$") as error:
            trace.check_path(path)
        assert words in str(error.value)
