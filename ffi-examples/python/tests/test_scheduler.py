import gc
import os
import subprocess
import sys
import threading
import weakref
from array import array
from pathlib import Path

import numpy as np
import pytest

import inflight
from inflight import EventKind, Finish, Request, RowFlag, Scheduler, SchedulerConfig, Status
from inflight import _structs
from inflight import scheduler as scheduler_module
from inflight._library import Numbers


def next_token(token, position):
    return (token * 31 + position * 7 + 3) % 9973


def sample(step):
    """A model that is a function of a token and its position."""
    at = step.logits_indices
    return (step.tokens[at] * 31 + step.positions[at] * 7 + 3) % 9973


def expected(prompt, count):
    token, position, output = int(prompt[-1]), len(prompt) - 1, []
    for _ in range(count):
        token = next_token(token, position)
        position += 1
        output.append(token)
    return output


def drain(scheduler, outputs=None):
    """Steps until nothing runs or waits; each request's tokens."""
    outputs = {} if outputs is None else outputs
    for now in range(10_000):
        step = scheduler.schedule(now)
        idle = step.num_rows == 0
        for output in step.commit(sample(step)):
            outputs.setdefault(output.request_id, []).extend(output.tokens)
        if idle:
            return outputs
    raise AssertionError("it does not end")


def test_requests_run_to_their_end():
    prompts = {i: np.arange(100 * i, 100 * i + 20 + 7 * i, dtype=np.uint32) for i in range(5)}
    with Scheduler(num_blocks=32, max_num_batched_tokens=32, max_num_seqs=3) as scheduler:
        scheduler.submitter()  # from here on there are events
        for i, prompt in prompts.items():
            scheduler.submit(Request(i, prompt, max_tokens=4 + i))
        outputs = drain(scheduler)
        assert outputs == {i: expected(p, 4 + i) for i, p in prompts.items()}
        events = scheduler.events()
        assert {e.request_id for e in events} == set(prompts)
        assert {(e.kind, e.finish) for e in events} == {(EventKind.FINISHED, Finish.LENGTH)}
        stats = scheduler.stats()
        assert stats.finished == 5 and stats.output_tokens == sum(4 + i for i in range(5))
        assert stats.num_free_blocks == 31
        scheduler.verify()


@pytest.mark.parametrize(
    "prompt",
    [
        [5, 6, 7],
        (5, 6, 7),
        array("I", [5, 6, 7]),
        bytes([5, 6, 7]),
        bytearray([5, 6, 7]),
        range(5, 8),
        np.arange(5, 8),
        np.uint16([5, 6, 7]),
        np.arange(5, 11, dtype=np.uint32)[:3],
        np.repeat(np.arange(5, 8, dtype=np.uint32), 2)[::2],
    ],
    ids=repr,
)
def test_prompts_are_any_integers(prompt):
    with Scheduler(num_blocks=8) as scheduler:
        scheduler.submit(Request(1, prompt, 1, stop_tokens=[9], salt=b"s", adapter="lora"))
        step = scheduler.schedule(0)
        assert step.tokens.tolist() == [5, 6, 7]
        (output,) = step.commit([9])
        assert output[:4] == (1, [9], Finish.STOP_TOKEN, 9)


def test_an_array_does_not_move_while_it_is_lent():
    values = array("I", [5, 6, 7])
    given = Numbers(values, "prompt")
    with pytest.raises(BufferError):
        values.extend(range(1000))
    del given
    values.append(8)


def test_a_step_says_what_the_header_says():
    with Scheduler(num_blocks=16, block_size=4, max_padded_rows=4) as scheduler:
        for i in range(3):
            scheduler.submit(Request(i, [10 * i + j for j in range(3 + i)], 8, client=7))
        step = scheduler.schedule(0)
        assert (step.num_rows, step.num_padded_rows, step.num_tokens) == (3, 4, 12)
        assert step.rows["request_id"].tolist() == [0, 1, 2]
        assert (step.rows["flags"] == RowFlag.SAMPLES | RowFlag.ADMITTED).all()
        assert step.qo_indptr.tolist() == [0, 3, 7, 12, 12]
        assert step.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
        assert step.kv_last_page_len.tolist() == [3, 4, 1, 0]
        blocks = np.split(step.kv_indices, step.kv_indptr[1:-1])
        for r in range(3):
            slots = step.slot_mapping[step.qo_indptr[r] : step.qo_indptr[r + 1]]
            tokens = np.arange(3 + r)
            assert slots.tolist() == (blocks[r][tokens // 4].astype(int) * 4 + tokens % 4).tolist()
        assert step.logits_indices.tolist() == [2, 6, 11]
        assert step.slot_mapping.dtype == np.int64 and len(step.packed) == step.view.packed_size
        assert step.block_ops == [] and step.pending == [] and len(step.preempted) == 0
        request = scheduler.request(1)
        assert request == (7, True, 4, 0, 4, 0, 0, 0, 0, 0, None)
        step.abandon()
        assert scheduler.schedule(1).tokens.tolist() == [
            0,
            1,
            2,
            10,
            11,
            12,
            13,
            20,
            21,
            22,
            23,
            24,
        ]


def test_arrays_are_asked_for_until_the_step_ends():
    scheduler = Scheduler(num_blocks=16)
    scheduler.submit(Request(1, [1, 2, 3], 8))
    step = scheduler.schedule(0)
    tokens = step.tokens
    assert not tokens.flags.writeable and step.tokens is tokens
    with pytest.raises(ValueError):
        tokens[0] = 4
    outputs = step.commit([5])
    scheduler.events()
    scheduler.submit(Request(2, [1], 1))
    scheduler.cancel(2)
    assert step.ended and outputs.tokens.tolist() == [5]
    for name in ("rows", "tokens", "positions", "slot_mapping", "packed", "block_ops", "pending"):
        with pytest.raises(inflight.ClosedError):
            getattr(step, name)
    assert step.num_tokens == 3  # numbers are the step's own
    with pytest.raises(inflight.ArgumentError) as failed:
        step.commit([5])
    assert failed.value.status is Status.UNKNOWN_STEP
    second = scheduler.schedule(1)
    with pytest.raises(inflight.ClosedError):
        list(outputs)
    scheduler.close()
    with pytest.raises(inflight.ClosedError):
        second.tokens
    with pytest.raises(inflight.ClosedError):
        second.commit([5])


def test_arrays_that_are_kept_last():
    """Later steps are written where the first one was, and, as they grow, elsewhere."""
    scheduler = Scheduler(num_blocks=4096, max_num_batched_tokens=8192)
    names = "tokens positions slot_mapping qo_indptr kv_indptr kv_indices kv_last_page_len".split()
    names += ["logits_indices", "packed", "rows"]
    kept = []

    def keep(step):
        for name in names:
            array = getattr(step, name)
            kept.append((array, array.tolist()))
            first = step.view.packed
            assert not first <= array.ctypes.data < first + step.view.packed_size, name
        assert step.view.rows != array.ctypes.data

    for i in range(6):
        scheduler.submit(Request(i, np.arange(4**i, dtype=np.uint32), 8))
        step = scheduler.schedule(i)
        keep(step)
        outputs = step.commit(sample(step))
        for array in (outputs.tokens, outputs.records):
            kept.append((array, array.tolist()))
    scheduler.close()
    gc.collect()
    assert kept and all(array.tolist() == then for array, then in kept)


def test_threads_do_not_share_what_they_give():
    """A commit that is refused changes nothing of another that is on its way."""
    scheduler = Scheduler(num_blocks=16)
    scheduler.submit(Request(1, [1, 2, 3], 8))
    step = scheduler.schedule(0)

    def offsets():  # when they are asked for, the tokens have been taken
        refused(lambda: step.commit([7, 8, 9]), inflight.ArgumentError, Status.OUTPUT_MISMATCH)
        yield from (0, 1)

    (output,) = step.commit([5], offsets())
    assert output.tokens == [5]


def test_no_event_is_lost(monkeypatch):
    scheduler = Scheduler(num_blocks=64, max_num_seqs=300)
    scheduler.submitter()
    for i in range(200):
        scheduler.submit(Request(i, [1], 1))
    drain(scheduler)
    take, calls = scheduler_module.lib.inflight_scheduler_events, []

    def fails(*arguments):
        calls.append(1)
        return 109 if len(calls) == 3 else take(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(scheduler_module.lib, "inflight_scheduler_events", fails)
        with pytest.raises(inflight.ArgumentError):
            scheduler.events()
    assert sorted(e.request_id for e in scheduler.events()) == list(range(200))
    assert scheduler.events() == []


def test_each_event_is_taken_once(monkeypatch):
    scheduler = Scheduler(num_blocks=64, max_waiting=2000)
    scheduler.submitter()
    for i in range(1100):
        scheduler.submit(Request(i, [1], 1))
    drain(scheduler)
    take, among = scheduler_module.lib.inflight_scheduler_events, []

    def interrupted(*arguments):  # as by a signal's handler, before its events are read
        status = take(*arguments)
        monkeypatch.setattr(scheduler_module.lib, "inflight_scheduler_events", take)
        among.extend(scheduler.events())
        return status

    monkeypatch.setattr(scheduler_module.lib, "inflight_scheduler_events", interrupted)
    first = scheduler.events()
    assert first and among
    assert sorted(e.request_id for e in first + among) == list(range(1100))


def test_threads_take_each_event_once():
    scheduler = Scheduler(num_blocks=64, max_num_seqs=64)
    submitter, taken, raised, threads = scheduler.submitter(), [], [], 4
    done = threading.Event()

    def take():
        try:
            while not done.is_set():
                taken.extend(scheduler.events())
        except BaseException as error:
            raised.append(error)

    running = [threading.Thread(target=take) for _ in range(threads)]
    for thread in running:
        thread.start()
    for i in range(2000):
        submitter.submit(Request(i, [1], 1))
        if i % 16 == 15:
            step = scheduler.schedule(i)
            step.commit(sample(step))
    drain(scheduler)
    done.set()
    for thread in running:
        thread.join()
    taken += scheduler.events()
    assert not raised and sorted(e.request_id for e in taken) == list(range(2000))


def test_numbers_of_newer_libraries_are_kept(monkeypatch):
    scheduler = Scheduler(num_blocks=16)
    scheduler.submitter()
    for i in (1, 2):
        scheduler.submit(Request(i, [1, 2, 3], 1))
    commit, take = scheduler_module._commit, scheduler_module.lib.inflight_scheduler_events

    def newer_commit(*arguments):
        status = commit(*arguments)
        view = _structs.OutputsView.from_address(arguments[3])
        _structs.Output.from_address(view.outputs).finish = 77
        return status

    def newer_events(*arguments):
        status = take(*arguments)
        first = _structs.Event.from_address(arguments[1])
        first.kind, first.finish, first.status = 55, 77, 299
        return status

    monkeypatch.setattr(scheduler_module, "_commit", newer_commit)
    monkeypatch.setattr(scheduler_module.lib, "inflight_scheduler_events", newer_events)
    outputs = scheduler.schedule(0).commit([4, 5])
    assert [(o.tokens, o.finish) for o in outputs] == [([4], 77), ([5], Finish.LENGTH)]
    new, old = scheduler.events()
    assert (new.kind, new.finish, new.status) == (55, 77, 299)
    assert old.kind is EventKind.FINISHED and old.finish is Finish.LENGTH and old.status is None


def test_close_is_idempotent_and_use_after_it_raises():
    scheduler = Scheduler(num_blocks=16)
    submitter = scheduler.submitter()
    handle = weakref.ref(scheduler._handle)
    scheduler.close()
    scheduler.close()
    gc.collect()
    assert scheduler.closed and handle() is None
    for call in (
        lambda: scheduler.submit(Request(1, [1], 1)),
        lambda: scheduler.schedule(0),
        lambda: scheduler.events(),
        lambda: scheduler.stats(),
        lambda: scheduler.submitter(),
        lambda: scheduler.__enter__(),
    ):
        with pytest.raises(inflight.ClosedError):
            call()
    with pytest.raises(inflight.ArgumentError):  # it outlives its scheduler, and refuses
        submitter.submit(Request(1, [1], 1))
    submitter.close()
    with pytest.raises(inflight.ClosedError):
        submitter.submit(Request(1, [1], 1))


@pytest.mark.parametrize(
    "values, field",
    [
        ({"num_blocks": 1}, "num_blocks"),
        ({"num_blocks": 8, "block_size": 0}, "block_size"),
        ({"num_blocks": 8, "policy": 77}, "policy"),
        ({"num_blocks": 8, "overlap": 2}, "overlap"),
        ({"num_blocks": 2**64}, "num_blocks"),
        ({"num_blocks": 8, "max_num_seqs": -1}, "max_num_seqs"),
        ({"num_blocks": 8, "max_num_seqs": "many"}, "max_num_seqs"),
    ],
)
def test_bad_configurations_are_named(values, field):
    with pytest.raises(inflight.ArgumentError) as failed:
        Scheduler(SchedulerConfig(**values))
    assert failed.value.status is Status.INVALID_ARGUMENT
    assert failed.value.field.split(".")[-1] == field
    assert failed.value.message


def refused(call, error, status, field=None, request_id=None):
    with pytest.raises(error) as failed:
        call()
    assert failed.value.status is status and isinstance(failed.value, inflight.InflightError)
    assert failed.value.message
    if field is not None:
        assert failed.value.field.split(".")[-1] == field
    if request_id is not None:
        assert failed.value.request_id == request_id
    elif status in (Status.TOO_MANY_STEPS_IN_FLIGHT, Status.OUTPUT_MISMATCH, Status.OUT_OF_BLOCKS):
        assert failed.value.request_id is None


def test_errors_are_classes_by_group():
    argument, capacity = inflight.ArgumentError, inflight.CapacityError
    scheduler = Scheduler(num_blocks=8, max_waiting=1, max_model_len=64)
    submit = scheduler.submit
    submit(Request(1, [1, 2], 4))
    refused(lambda: submit(Request(1, [1], 1)), argument, Status.DUPLICATE_REQUEST, "", 1)
    refused(lambda: submit(Request(2, [1], 1)), capacity, Status.QUEUE_FULL, "", 2)
    first = scheduler.schedule(0)
    refused(lambda: scheduler.schedule(1), capacity, Status.TOO_MANY_STEPS_IN_FLIGHT)
    invalid = Status.INVALID_ARGUMENT
    refused(lambda: submit(Request(3, [], 1)), argument, invalid, "prompt")
    refused(lambda: submit(Request(3, [1], 0)), argument, invalid, "max_tokens", 3)
    refused(lambda: submit(Request(3, [-1], 1)), argument, invalid, "prompt")
    refused(lambda: submit(Request(3, np.array([2**32]), 1)), argument, invalid, "prompt")
    refused(lambda: submit(Request(3, np.ones(2), 1)), argument, invalid, "prompt")
    refused(lambda: submit(Request(-3, [1], 1)), argument, invalid, "id")
    refused(lambda: submit(Request(3, [1], 1, priority=2**31)), argument, invalid, "priority")
    refused(lambda: submit(Request(3, [1] * 64, 1)), argument, Status.PROMPT_TOO_LONG)
    refused(lambda: scheduler.cancel(99), argument, Status.UNKNOWN_REQUEST, "", 99)
    refused(lambda: scheduler.cancel(2**64), argument, invalid, "request_id")
    refused(lambda: scheduler.request(99), argument, Status.UNKNOWN_REQUEST)
    refused(lambda: scheduler.schedule(-1), argument, invalid, "now")
    refused(lambda: first.commit([]), argument, Status.OUTPUT_MISMATCH)
    refused(lambda: first.commit([1, 2]), argument, Status.OUTPUT_MISMATCH)
    refused(lambda: first.commit([1], []), argument, invalid, "indptr")
    refused(scheduler.reset_prefix_cache, capacity, Status.OUT_OF_BLOCKS)
    if not inflight.build_info()["cuda_kernels"]:
        with pytest.raises(inflight.DeviceError):
            inflight.Device.cuda_count()
            inflight.Device.cuda(0)
            pytest.skip("a GPU is here")
    assert not first.ended and [o.tokens for o in first.commit([1])] == [[1]]
    assert isinstance(inflight.errors.error_of(299), capacity)  # by its group, where it is new
    assert inflight.errors.error_of(299).status == 299


def test_drafts_commit_ragged():
    with Scheduler(num_blocks=16) as scheduler:
        scheduler.submit(Request(1, [1, 2, 3], 8))
        scheduler.submit(Request(2, [1, 2, 3], 8))
        scheduler.schedule(0).commit([4, 4])
        scheduler.set_draft(1, [5, 6])
        step = scheduler.schedule(1)
        assert step.rows["num_draft"].tolist() == [2, 0] and step.num_logits == 4
        outputs = step.commit([5, 9, 8], np.array([0, 2, 3]))
        assert [(o.request_id, o.tokens) for o in outputs] == [(1, [5, 9]), (2, [8])]
        assert outputs.records["num_tokens"].tolist() == [2, 1]


def test_a_request_says_at_its_end_what_it_has_come_to():
    with Scheduler(num_blocks=16, block_size=4) as scheduler:
        submitter = scheduler.submitter()
        scheduler.submit(Request(1, list(range(9)), 1))
        scheduler.schedule(10).commit([9])
        scheduler.submit(Request(2, list(range(9)), 4))
        scheduler.schedule(20).commit([9])
        scheduler.set_draft(2, [5, 6])
        outputs = scheduler.schedule(30).commit([5, 8], [0, 2])
        assert [o.result for o in outputs] == [None] and outputs.results == []
        so_far = scheduler.request(2)
        assert (so_far.num_cached, so_far.first_scheduled_at, so_far.first_token_at) == (8, 20, 20)
        outputs = scheduler.schedule(40).commit([8])
        ended = inflight.RequestResult(20, 20, 9, 4, 8, 0, 2, 1)
        assert [o.result for o in outputs] == outputs.results == [ended]
        assert outputs.records["result"].tolist() == [0]
        assert [e.result for e in scheduler.events()][-1] == ended
        # Ended where the caller finds a stop string: so many tokens count.
        for i in (3, 4, 5):
            scheduler.submit(Request(i, [i], 50))
        for now in (50, 51, 52):
            scheduler.schedule(now).commit([1, 2, 3])
        result = scheduler.finish(3, 2)
        assert (result.num_output, result.first_token_at) == (2, 50)
        refused(lambda: scheduler.finish(3, 2), inflight.ArgumentError, Status.UNKNOWN_REQUEST)
        refused(
            lambda: scheduler.finish(4, -1),
            inflight.ArgumentError,
            Status.INVALID_ARGUMENT,
            "keep_tokens",
        )
        submitter.finish(4, 1)
        submitter.cancel(5)
        scheduler.schedule(60).commit([])
        told = [(e.kind, e.request_id, e.finish, e.result.num_output) for e in scheduler.events()]
        assert told == [
            (EventKind.FINISHED, 4, inflight.Finish.STOPPED, 1),
            (EventKind.CANCELLED, 5, inflight.Finish.NONE, 3),
        ]
        assert scheduler.stats().finished == 4


def test_the_first_that_is_handed_over_wakes():
    with Scheduler(num_blocks=16) as scheduler:
        calls, woken = [], threading.Event()
        submitter = scheduler.submitter()
        scheduler.set_wake(lambda: (calls.append(threading.get_ident()), woken.set()))
        threads = [
            threading.Thread(target=submitter.submit, args=(Request(i, [1], 1),)) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        assert woken.wait(60)
        for thread in threads:
            thread.join()
        assert len(calls) == 1 and calls[0] in [thread.ident for thread in threads]
        scheduler.schedule().commit([1] * 8)
        scheduler.set_wake(None)
        submitter.cancel(1)
        assert len(calls) == 1
        refused(
            lambda: scheduler.set_wake(5), inflight.ArgumentError, Status.INVALID_ARGUMENT, "wake"
        )


def test_wakes_end_with_the_interpreter():
    """Some schedulers are closed by then, and one is not."""
    program = """
import inflight, threading
bell = threading.Event()
kept = [inflight.Scheduler(num_blocks=32) for _ in range(8)]
for scheduler in kept:
    scheduler.set_wake(bell.set)
for scheduler in kept[1:]:
    scheduler.close()
submitter = kept[0].submitter()
def submit():
    i = 0
    while True:
        i += 1
        submitter.cancel(i)
        kept[0].schedule().abandon()
threading.Thread(target=submit, daemon=True).start()
assert bell.wait(60)
"""
    package = str(Path(inflight.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package}
    for _ in range(5):
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, timeout=120
        )
        assert (ran.returncode, ran.stderr) == (0, b"")


def test_two_steps_in_flight():
    with Scheduler(num_blocks=16, max_steps_in_flight=2, overlap=True) as scheduler:
        scheduler.submit(Request(1, [1, 2, 3], 3))
        first = scheduler.schedule(0)
        second = scheduler.schedule(1)
        assert second.pending == [(0, 1, 0)] and second.tokens[0] == inflight.NO_TOKEN
        refused(lambda: second.commit([1]), inflight.ArgumentError, Status.STEP_OUT_OF_ORDER)
        assert first.tokens.tolist() == [1, 2, 3]
        first.commit([7])
        assert second.kv_last_page_len.tolist() == [4]
        second.commit([8])


def test_preemption_is_told_and_changes_no_tokens():
    prompts = {i: [10 * i + j for j in range(8)] for i in range(4)}
    with Scheduler(num_blocks=9, block_size=4) as scheduler:
        scheduler.submitter()
        for i, prompt in prompts.items():
            scheduler.submit(Request(i, prompt, 12))
        assert drain(scheduler) == {i: expected(p, 12) for i, p in prompts.items()}
        assert scheduler.stats().preemptions > 0
        told = [e for e in scheduler.events() if e.kind is EventKind.PREEMPTED]
        assert len(told) == scheduler.stats().preemptions
        assert all(e.step_id is not None for e in told)


def test_eight_threads_submit_while_one_steps():
    threads, each = 8, 200
    scheduler = Scheduler(num_blocks=512, max_num_seqs=64)
    submitters = [scheduler.submitter() for _ in range(threads // 2)]
    cancelled, raised = set(), []

    def run(t):
        try:
            submitter = submitters[t % len(submitters)]
            for i in range(t * each, (t + 1) * each):
                submitter.submit(Request(i, [i % 97, 5, i], 1 + i % 9))
                if i % 5 == 0:
                    submitter.cancel(i)
                    cancelled.add(i)
        except BaseException as error:
            raised.append(error)

    running = [threading.Thread(target=run, args=(t,)) for t in range(threads)]
    for thread in running:
        thread.start()
    outputs, ended = {}, {}
    while len(ended) < threads * each:
        assert not raised
        step = scheduler.schedule()
        for output in step.commit(sample(step)):
            outputs.setdefault(output.request_id, []).extend(output.tokens)
        for event in scheduler.events():
            if event.kind is not EventKind.PREEMPTED:
                assert event.request_id not in ended
                ended[event.request_id] = event.kind
    for thread in running:
        thread.join()
    assert not raised
    for i in range(threads * each):
        if ended[i] is EventKind.FINISHED:
            assert outputs[i] == expected([i % 97, 5, i], 1 + i % 9)
        else:
            assert i in cancelled
    submitters[0].submit(Request(1, [1], 1, client=7))
    submitters[1].submit(Request(1, [1], 1, client=8))
    drain(scheduler)
    # Two of one id, which the client tells apart.
    refused, finished = scheduler.events()
    assert refused.kind is EventKind.REFUSED and refused.status is Status.DUPLICATE_REQUEST
    assert (refused.request_id, refused.client) == (1, 8)
    assert finished.kind is EventKind.FINISHED
    assert (finished.request_id, finished.client) == (1, 7)
    scheduler.verify()
    scheduler.close()


def test_closing_while_others_submit_is_safe():
    for _ in range(20):
        scheduler = Scheduler(num_blocks=64)
        submitter = scheduler.submitter()
        stopped = threading.Event()

        def run():
            i = threading.get_ident() << 20
            try:
                while not stopped.is_set():
                    submitter.submit(Request(i % 2**64, [1, 2], 1))
                    i += 1
            except (inflight.ClosedError, inflight.ArgumentError):
                pass

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        scheduler.schedule(0).abandon()
        scheduler.close()
        submitter.close()
        stopped.set()
        for thread in threads:
            thread.join()


def test_numpy_is_not_needed():
    """Without it arrays are memoryviews."""
    program = """
import sys
sys.modules["numpy"] = None
import inflight
scheduler = inflight.Scheduler(num_blocks=8)
scheduler.submit(inflight.Request(1, [1, 2, 3], 2))
step = scheduler.schedule(0)
tokens, rows = step.tokens, step.rows
assert tokens.tolist() == [1, 2, 3] and tokens.readonly and step.slot_mapping.format == "q"
assert rows[0].num_tokens == 3 and len(step.preempted) == 0
assert [o.tokens for o in step.commit([9])] == [[9]]
assert tokens.tolist() == [1, 2, 3]  # it lasts
"""
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[1]
    )
