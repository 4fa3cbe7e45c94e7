"""Batches come in order; a loader that fails or dies raises in the loop; nothing waits for ever."""

import threading
import time

import numpy as np
import pytest

from jaxscale.train.prefetch import Prefetcher


def never():
    return False


def numbers(step):
    return {"n": np.full(2, step)}


def test_batches_come_in_order_and_end():
    with Prefetcher(numbers, numbers=range(3, 9)) as batches:
        assert [int(batches.get(step, never)["n"][0]) for step in range(3, 9)] == list(range(3, 9))
        with pytest.raises(RuntimeError, match="ended before batch 9"):
            batches.get(9, never)


def test_no_more_is_made_ahead_than_asked():
    made = []
    with Prefetcher(lambda step: made.append(step) or numbers(step), numbers=range(100), depth=2) as batches:
        batches.get(0, never)
        time.sleep(0.3)
        # One handed out, two waiting, one in the loader's hands.
        assert made == [0, 1, 2, 3]


def test_a_loader_that_fails_raises_in_the_loop_after_the_good_batches():
    def fails(step):
        if step == 2:
            raise OSError("gone")
        return numbers(step)

    with Prefetcher(fails, numbers=range(9)) as batches:
        assert [int(batches.get(step, never)["n"][0]) for step in (0, 1)] == [0, 1]
        with pytest.raises(OSError, match="gone"):
            batches.get(2, never)


def test_a_loader_that_exits_raises_too():
    def leaves(step):
        raise SystemExit(3)

    with Prefetcher(leaves, numbers=range(9)) as batches, pytest.raises(SystemExit):
        batches.get(0, never)


def test_a_wait_can_be_given_up_and_a_stuck_loader_is_left_behind():
    stuck = threading.Event()

    def waits(step):
        stuck.wait()
        return numbers(step)

    started = time.monotonic()
    with Prefetcher(waits, numbers=range(9)) as batches:
        asked = iter([False, False, True])
        assert batches.get(0, lambda: next(asked)) is None
    assert time.monotonic() - started < 5
    stuck.set()
