"""Batch schedules: pure, reshuffled each epoch, the same for any number of hosts, with a skip list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.batches import BatchSchedule
from jaxscale.errors import UsageError

schedules = st.builds(
    lambda size, more, seed: BatchSchedule(num_examples=size + more, global_batch_size=size, seed=seed),
    size=st.integers(1, 40),
    more=st.integers(0, 200),
    seed=st.integers(0, 2**40),
)


@settings(deadline=None, max_examples=50)
@given(schedule=schedules, epoch=st.integers(0, 5))
def test_an_epoch_holds_no_example_twice(schedule: BatchSchedule, epoch: int) -> None:
    first = epoch * schedule.num_batches_per_epoch
    steps = range(first, first + schedule.num_batches_per_epoch)
    seen = np.concatenate([schedule.indices(step) for step in steps])
    assert len(np.unique(seen)) == len(seen) == schedule.num_batches_per_epoch * schedule.global_batch_size
    assert seen.min() >= 0
    assert seen.max() < schedule.num_examples


def test_epochs_are_reshuffled_and_leave_other_examples_out() -> None:
    schedule = BatchSchedule(num_examples=103, global_batch_size=10, seed=1)
    epochs = [np.concatenate([schedule.indices(10 * e + b) for b in range(10)]) for e in range(8)]
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert len({tuple(sorted(set(range(103)) - set(epoch.tolist()))) for epoch in epochs}) > 1


@settings(deadline=None, max_examples=50)
@given(schedule=schedules, skip=st.sets(st.integers(0, 60), max_size=20))
def test_a_skip_list_leaves_out_exactly_those_batches(schedule: BatchSchedule, skip: set[int]) -> None:
    skipping = BatchSchedule(
        num_examples=schedule.num_examples,
        global_batch_size=schedule.global_batch_size,
        seed=schedule.seed,
        skip=tuple(sorted(skip)),
    )
    kept = [step for step in range(100) if step not in skip]
    for step in range(0, len(kept), 7):
        assert np.array_equal(skipping.indices(step), schedule.indices(kept[step]))


def test_is_a_function_of_the_seed_and_the_step() -> None:
    first, again, other = (BatchSchedule(num_examples=500, global_batch_size=50, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.indices(37), again.indices(37))
    assert not np.array_equal(first.indices(37), other.indices(37))
    assert not np.array_equal(first.indices(37), first.indices(38))


def test_a_far_step_of_a_giant_collection_is_as_quick_as_any() -> None:
    schedule = BatchSchedule(num_examples=10**12, global_batch_size=256, seed=0)
    indices = schedule.indices(10**15)
    assert indices.shape == (256,)
    assert len(np.unique(indices)) == 256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size=0 must be at least 1"),
        ({"global_batch_size": 11}, "more than the 10 examples"),
        ({"skip": (3, 2)}, "increasing"),
        ({"skip": (2, 2)}, "none twice"),
        ({"skip": (-1,)}, "from 0"),
    ],
)
def test_refuses(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BatchSchedule(**{"num_examples": 10, "global_batch_size": 2, "seed": 0, **fields})


def test_refuses_a_step_that_is_not_there() -> None:
    schedule = BatchSchedule(num_examples=10, global_batch_size=2, seed=0)
    with pytest.raises(UsageError, match="step=-1"):
        schedule.indices(-1)
