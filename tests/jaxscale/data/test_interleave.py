"""Sources in turn: beside a loop that takes one sample after the other, and far beyond what a loop could reach."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.interleave import Interleave

SHARES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(shares=SHARES)
def test_each_source_has_its_share_of_any_beginning_and_its_own_samples_in_order(shares):
    order = Interleave(shares)
    sources, own = order.places(np.arange(500))
    seen = [0] * len(shares)
    for n, (source, place) in enumerate(zip(sources.tolist(), own.tolist(), strict=True)):
        assert order.counts(n) == seen
        assert place == seen[source]
        seen[source] += 1
        for share, count in zip(shares, seen, strict=True):
            assert abs(count - (n + 1) * share / sum(shares)) < len(shares)


@settings(max_examples=50, deadline=None)
@given(shares=SHARES, first=st.integers(0, 2**61))
def test_any_place_is_found_from_the_counts_before_it(shares, first):
    order = Interleave(shares)
    counts = order.counts(first)
    assert sum(counts) == first
    for source, own in zip(*order.places(np.arange(first, first + 20)), strict=True):
        assert own == counts[source]
        counts[source] += 1
    assert counts == order.counts(first + 20)


def test_counts_are_those_of_whole_numbers_without_a_limit():
    for num in (10**12, 2**61 + 12345):
        # A third, rounded to 2**-30; then half of what is left.
        first = (num * round(Fraction(2**30, 3)) + 2**29) // 2**30
        second = ((num - first) * 2**29 + 2**29) // 2**30
        assert Interleave([1, 1, 1]).counts(num) == [first, second, num - first - second]


def test_a_source_however_small_its_share_is_never_left_out():
    for shares in ([1e-30, 1.0], [1.0, 1e-30]):
        counts = Interleave(shares).counts(2**32)
        assert min(counts) == 4


def test_a_single_source_has_all():
    sources, own = Interleave([3.0]).places(np.array([0, 5, 10**15]))
    assert (sources.tolist(), own.tolist()) == ([0, 0, 0], [0, 5, 10**15])


@pytest.mark.parametrize("shares", [[], [1.0, 0.0], [-1.0]])
def test_shares_must_be_above_nothing(shares):
    with pytest.raises(ValueError, match="shares"):
        Interleave(shares)
