"""Length buckets: padding, masks, and the choice that pads least."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.buckets import bucket_for, choose_buckets, pad_to_bucket
from jaxscale.errors import UsageError


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.lists(st.integers(1, 99), max_size=30), min_size=1, max_size=9))
def test_pads_as_a_loop_would(rows: list[list[int]]) -> None:
    tokens, mask = pad_to_bucket([np.array(row, np.int32) for row in rows], buckets=(4, 16, 30), pad_id=0)
    width = bucket_for(max(map(len, rows)), (4, 16, 30))
    assert tokens.tolist() == [row + [0] * (width - len(row)) for row in rows]
    assert mask.tolist() == [[True] * len(row) + [False] * (width - len(row)) for row in rows]
    assert tokens.dtype == np.int32
    assert mask.dtype == np.bool_


def test_a_pad_id_inside_a_row_stays_a_token() -> None:
    tokens, mask = pad_to_bucket([[7, 7], [7]], buckets=(3,), pad_id=7)
    assert tokens.tolist() == [[7, 7, 7], [7, 7, 7]]
    assert mask.sum() == 3


def test_shapes_come_from_the_buckets_alone() -> None:
    shapes = {pad_to_bucket([[1] * n], buckets=(8, 32), pad_id=0)[0].shape for n in range(33)}
    assert shapes == {(1, 8), (1, 32)}


def test_refuses_a_row_longer_than_the_last_bucket() -> None:
    with pytest.raises(UsageError, match="33 tokens does not fit the buckets"):
        pad_to_bucket([[1] * 33], buckets=(8, 32), pad_id=0)


def padded_total(lengths: list[int], buckets: tuple[int, ...]) -> int:
    return sum(bucket_for(length, buckets) for length in lengths)


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30), num_buckets=st.integers(1, 4))
def test_chosen_buckets_pad_least(lengths: list[int], num_buckets: int) -> None:
    buckets = choose_buckets(lengths, num_buckets, multiple=8)
    candidates = range(8, 48, 8)
    sets = (c for n in range(1, num_buckets + 1) for c in itertools.combinations(candidates, n))
    best = min(padded_total(lengths, c) for c in sets if c[-1] >= max(lengths))
    assert padded_total(lengths, buckets) == best
    assert 1 <= len(buckets) <= num_buckets
    assert list(buckets) == sorted(set(buckets))
    assert all(bucket % 8 == 0 for bucket in buckets)


def test_refuses_no_lengths_and_no_buckets() -> None:
    with pytest.raises(UsageError, match="0 lengths"):
        choose_buckets([], 2)
    with pytest.raises(UsageError, match="num_buckets=0"):
        choose_buckets([3], 0)
