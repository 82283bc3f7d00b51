"""In a child of fork the parent's objects are refused, whatever the parent's threads were doing, and
those that the child makes work."""

import gc
import multiprocessing
import os
import threading

import numpy as np
import pytest

import inflight
from inflight import Cache, Device, Request, Scheduler, Status

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

# Large enough for all threads of a device.
_STATE = (np.ones((256, 8, 64), np.float32), np.zeros((256, 8), np.float32))


def _step(scheduler):
    step = scheduler.schedule()
    for _ in step.commit([7] * step.num_sampling):
        pass
    scheduler.events()
    return step.num_rows


def _child(scheduler, submitter, cache, device, done):
    calls = (
        lambda: scheduler.submit(Request(1, [1], 1)),
        lambda: scheduler.schedule(),
        lambda: scheduler.events(),
        lambda: scheduler.stats(),
        lambda: scheduler.submitter(),
        lambda: submitter.submit(Request(1, [1], 1)),
        lambda: submitter.cancel(1),
        lambda: cache.open(),
        lambda: cache.stats(),
        lambda: device.info(),
        lambda: inflight.merge(device, [_STATE, _STATE]),
    )
    for call in calls:
        with pytest.raises(inflight.ArgumentError, match="made before fork") as error:
            call()
        assert error.value.status is Status.FORKED
    for parents in (scheduler, submitter, cache, device):
        parents.close()
    gc.collect()
    own = Scheduler(num_blocks=64)
    own.submitter().submit(Request(1, [1, 2, 3], 5))
    while _step(own):
        pass
    assert own.stats().finished == 1
    with Device.cpu(threads=2) as device:
        assert (inflight.merge(device, [_STATE, _STATE]) == 1).all()
    inflight.set_log(None)
    done.set()


def test_children_refuse_what_the_parent_made():
    context = multiprocessing.get_context("fork")
    scheduler, cache, device = Scheduler(64, max_waiting=50), Cache(64), Device.cpu(threads=2)
    submitter, stop = scheduler.submitter(), threading.Event()

    def loop(call):
        count = 0
        while not stop.is_set():
            count += 1
            try:
                call(count)
            except inflight.CapacityError:
                pass

    calls = (
        lambda count: submitter.submit(Request(count, [1, 2, 3], 2)),
        lambda count: _step(scheduler),
        lambda count: cache.close_sequence(cache.open()),
        lambda count: inflight.merge(device, [_STATE, _STATE]),
    )
    threads = [threading.Thread(target=loop, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            done = context.Event()
            given = (scheduler, submitter, cache, device, done)
            process = context.Process(target=_child, args=given)
            process.start()
            process.join(60)
            hangs = process.is_alive()
            process.kill()
            process.join()
            assert not hangs and done.is_set()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    scheduler.verify()
    cache.verify()
