"""Factors: linking, splitting and dealing out, against plain label arithmetic."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.sharding.factors import Factors


def test_linked_dims_have_the_same_factors():
    factors = Factors()
    a, b, c = factors.new_dim(6), factors.new_dim(6), factors.new_dim(6)
    assert factors.link(a, b)
    assert factors.resolve(a) == factors.resolve(b) != factors.resolve(c)


def test_a_split_reaches_every_linked_dim():
    factors = Factors()
    fused, other, heads = factors.new_dim(12), factors.new_dim(12), factors.new_dim(4)
    factors.link(fused, other)
    cut = factors.take(fused, 4)
    assert cut is not None
    factors.link(cut[0], heads)
    assert [factors.size(f) for f in factors.resolve(other)] == [4, 3]
    assert factors.resolve(other)[0] == factors.resolve(heads)[0]


def test_factors_that_do_not_fit_are_not_linked():
    factors = Factors()
    left, right = factors.new_dim(12), factors.new_dim(12)
    factors.take(left, 4)
    factors.take(right, 3)
    assert not factors.link(left, right)
    assert factors.take(factors.resolve(right), 2) is None


def test_dims_of_size_one_have_no_factors():
    factors = Factors()
    assert factors.new_dims((1, 5, 1))[::2] == ((), ())
    assert factors.link((), ())


@settings(deadline=None)
@given(st.lists(st.integers(2, 5), min_size=1, max_size=5), st.data())
def test_any_run_of_factors_can_be_taken_and_keeps_its_size(sizes, data):
    """A dim cut at every product of its leading pieces, in any order, ends as those pieces."""
    factors = Factors()
    dim = factors.new_dim(math.prod(sizes))
    for end in data.draw(st.permutations(range(1, len(sizes)))):
        cut = factors.take(dim, math.prod(sizes[:end]))
        assert cut is not None
        assert [factors.dim_size(part) for part in cut] == [math.prod(sizes[:end]), math.prod(sizes[end:])]
    assert [factors.size(f) for f in factors.resolve(dim)] == sizes


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_links_are_the_connected_components(edges):
    factors = Factors()
    dims = [factors.new_dim(7) for _ in range(8)]
    reached = np.eye(8, dtype=bool)
    for a, b in edges:
        factors.link(dims[a], dims[b])
        reached[a, b] = reached[b, a] = True
    for _ in range(8):
        reached = reached @ reached
    for a in range(8):
        for b in range(8):
            assert (factors.resolve(dims[a]) == factors.resolve(dims[b])) == reached[a, b]
