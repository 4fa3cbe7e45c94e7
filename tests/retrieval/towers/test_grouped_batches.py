"""Batches within groups: one group in each that can be, every example at most once an epoch, any batch on its own."""

import numpy as np
import pytest

from jaxscale.errors import UsageError
from retrieval.towers.grouped_batches import GroupedSchedule

# Of 37, 9, 3, 3, 2, 2 and 1 examples, among each other.
GROUPS = np.random.default_rng(0).permutation(np.repeat([4, 7, 0, 5, 9, 1, 2], [37, 9, 3, 3, 2, 2, 1]))
SIZE = 8


def schedule_of(seed=0):
    return GroupedSchedule.of(GROUPS, global_batch_size=SIZE, seed=seed)


def epoch_of(schedule, epoch):
    length = schedule.num_batches_per_epoch
    return [schedule.indices(number) for number in range(epoch * length, (epoch + 1) * length)]


def test_whole_batches_of_a_group_hold_nothing_else():
    held = [set(GROUPS[batch].tolist()) for batch in epoch_of(schedule_of(), 0)]
    assert len(held) == 57 // SIZE
    assert sum(groups == {4} for groups in held) == 4
    assert sum(groups == {7} for groups in held) == 1
    assert sum(len(groups) > 1 for groups in held) == 2


def test_every_example_comes_at_most_once_an_epoch_and_often_over_epochs():
    schedule, counts = schedule_of(), np.zeros(len(GROUPS), int)
    for epoch in range(20):
        seen = np.concatenate(epoch_of(schedule, epoch))
        assert len(np.unique(seen)) == len(seen) == schedule.num_batches_per_epoch * SIZE
        counts[seen] += 1
    assert counts.min() > 10


def test_a_batch_is_a_pure_function_of_its_number_and_the_seed():
    schedule = schedule_of()
    later = schedule.indices(10**9)
    forwards = [schedule.indices(number).tolist() for number in range(14)]
    backwards = [schedule_of().indices(number).tolist() for number in reversed(range(14))]
    assert forwards == backwards[::-1]
    np.testing.assert_array_equal(later, schedule_of().indices(10**9))
    assert [schedule_of(seed=1).indices(number).tolist() for number in range(14)] != forwards
    first, second = (sorted(map(sorted, part)) for part in (forwards[:7], forwards[7:]))
    assert first != second


def test_one_group_and_groups_of_one_are_batches_as_well():
    for groups in (np.zeros(20, int), np.arange(20)):
        seen = np.concatenate(epoch_of(GroupedSchedule.of(groups, global_batch_size=6, seed=0), 0))
        assert len(set(seen.tolist())) == 18


def test_too_few_examples_and_negative_numbers_are_refused():
    with pytest.raises(UsageError, match="global_batch_size=58 is more than the 57 examples"):
        GroupedSchedule.of(GROUPS, global_batch_size=58, seed=0)
    with pytest.raises(UsageError, match="number=-1"):
        schedule_of().indices(-1)
