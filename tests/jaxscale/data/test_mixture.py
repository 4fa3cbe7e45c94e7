"""Mixtures: exact shares, every row once an epoch, any sample at once, the same for any number of hosts."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.mixture import Mixture, Samples, Source


class Numbered:
    """Rows that say which they are."""

    def __init__(self, name, num_sequences):
        self.name, self.num_sequences = name, num_sequences

    def sequences(self, indices):
        assert indices.size == 0 or (indices.min() >= 0 and indices.max() < self.num_sequences)
        return {"tokens": np.stack([np.full(len(indices), self.name), indices % 2**31], 1).astype(np.int32)}


def mixture(*sizes, shares=None, seed=0):
    shares = shares or [1] * len(sizes)
    return Mixture(
        [Source(rows=Numbered(n, s), share=w) for n, (s, w) in enumerate(zip(sizes, shares, strict=True))], seed=seed
    )


def test_every_epoch_has_every_row_once_and_another_order():
    order = mixture(1000)
    first, second = (order.places(np.arange(e * 1000, (e + 1) * 1000))[1] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).mean() > 0.9
    assert (first != np.arange(1000)).mean() > 0.9


def test_no_row_comes_twice_before_every_other_of_its_source_came_once():
    sizes = (100, 50, 7)
    sources, rows = mixture(*sizes, shares=[0.5, 0.3, 0.2]).places(np.arange(3000))
    for number, size in enumerate(sizes):
        own = rows[sources == number]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(first=st.integers(0, 10**12), num_hosts=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_hosts_together_read_what_one_host_reads(first, num_hosts, seed):
    order = mixture(10**9, 10**7, shares=[3, 1], seed=seed)
    whole = order.rows(first, 16)["tokens"]
    each = 16 // num_hosts
    parts = [order.rows(first + host * each, each)["tokens"] for host in range(num_hosts)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rows_come_in_the_samples_order():
    order = mixture(1000, 1000)
    sources, rows = order.places(np.arange(300))
    np.testing.assert_array_equal(order.rows(0, 300)["tokens"], np.stack([sources, rows], 1))
    assert len(set(sources)) == 2


def test_a_trillion_tokens_are_sought_in_constant_memory():
    # 10**12 tokens in rows of 1,024, and as many again of another dataset.
    order = mixture(10**12 // 1024, 10**12 // 1024, shares=[2, 1])
    tracemalloc.start()
    for first in (0, 10**9, 10**12):
        rows = order.rows(first, 64)["tokens"]
        assert rows.shape == (64, 2)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_epochs_of_a_run():
    assert mixture(1000, 250, shares=[1, 1]).num_epochs(2000) == [1.0, 4.0]


def test_samples_are_what_grain_reads():
    order = mixture(100, 30)
    samples = Samples(order, 50)
    assert len(samples) == 50
    np.testing.assert_array_equal(samples[7]["tokens"], order.rows(7, 1)["tokens"][0])
    with pytest.raises(IndexError, match="sample 50"):
        samples[50]


def test_shares_must_be_above_nothing():
    with pytest.raises(ValueError, match=r"shares \[0\.0\]"):
        mixture(3, shares=[Fraction(0)])
