"""Step s trains on the s-th number that is not skipped, wherever the run begins."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from jaxscale.train.data_order import DataOrder


@given(st.sets(st.integers(0, 30)), st.integers(0, 12), st.integers(0, 12))
def test_advancing_gives_the_numbers_that_are_left_one_by_one(skipped, first, more):
    left = [number for number in range(100) if number not in skipped]
    order = DataOrder(skipped=tuple(sorted(skipped)))
    for _ in range(first):
        order = order.advanced()
    assert list(itertools.islice(order.numbers(), more)) == left[first : first + more]


def test_what_is_behind_stays_behind_when_it_is_left_out_later():
    order = DataOrder(next_number=5).without([3, 6, 6])
    assert order.skipped == (3, 6)
    assert list(itertools.islice(order.numbers(), 3)) == [5, 7, 8]
