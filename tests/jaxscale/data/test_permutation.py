"""The seekable permutation: a bijection of every size, other for every seed, the same everywhere and for ever."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.permutation import Permutation, draws, fold_seed

TRILLION = 10**12
GOLDEN_SEED = 7793354480076914749
GOLDEN_ORDER = [1, 5, 3, 6, 2, 8, 0, 9, 4, 7]
GOLDEN_LAST = 440549255394


def test_is_a_bijection_for_every_size_up_to_2000() -> None:
    for size in range(1, 2001):
        values = Permutation(size, seed=size).at(np.arange(size))
        assert (np.bincount(values, minlength=size) == 1).all(), size


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 300_000), seed=st.integers(-(2**70), 2**70))
def test_is_a_bijection_for_any_seed(size: int, seed: int) -> None:
    values = Permutation(size, seed).at(np.arange(size))
    assert (np.bincount(values, minlength=size) == 1).all()


def test_seeds_and_sizes_give_other_orders() -> None:
    orders = [tuple(Permutation(size, seed).at(np.arange(50)).tolist()) for size in (50, 51) for seed in range(20)]
    assert len(set(orders)) == len(orders)


def test_seeks_in_a_trillion_and_keeps_distinct_values() -> None:
    permutation = Permutation(TRILLION, seed=3)
    for start in (0, TRILLION // 2, TRILLION - 100_000):
        values = permutation.at(np.arange(start, start + 100_000))
        assert values.min() >= 0
        assert values.max() < TRILLION
        assert len(np.unique(values)) == 100_000
    # Where it sends a window does not tell where the window is: the mean is that of the whole, within 5 deviations.
    assert abs(values.mean() / TRILLION - 0.5) < 5 / np.sqrt(12 * 100_000)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 2**62), seed=st.integers(0, 2**32), data=st.data())
def test_one_position_alone_is_as_among_others(size: int, seed: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6))
    permutation = Permutation(size, seed)
    assert permutation.at(np.array(positions)).tolist() == [permutation(p) for p in positions]


def test_small_sizes_reach_every_order_about_equally_often() -> None:
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for seed in range(3000):
        counts[tuple(Permutation(3, seed).at(np.arange(3)).tolist())] += 1
    # 500 expected each; cycle walking on 4 values is close to uniform, not exactly.
    assert min(counts.values()) > 350, counts


def test_matches_plain_python_integers() -> None:
    """A scalar reference of the same network, in Python's unbounded integers."""
    size, seed = 1000, 5
    mask64 = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask64
        return x ^ (x >> 31)

    def permute(x: int) -> int:
        while True:
            left, right = x >> 5, x & 31
            for round_ in range(12):
                key = fold_seed(seed, "permutation", size, round_)
                if round_ % 2:
                    right ^= mix((left + key) & mask64) & 31
                else:
                    left ^= mix((right + key) & mask64) & 31
            x = left << 5 | right
            if x < size:
                return x

    assert Permutation(size, seed).at(np.arange(size)).tolist() == [permute(x) for x in range(size)]


def test_never_changes() -> None:
    """Data orders of old runs hang on these values: a change of them breaks every resume."""
    assert fold_seed(0, "epoch", 1) == GOLDEN_SEED
    assert Permutation(10, seed=0).at(np.arange(10)).tolist() == GOLDEN_ORDER
    assert Permutation(TRILLION, seed=0)(TRILLION - 1) == GOLDEN_LAST


def test_keeps_the_shape_and_the_dtype() -> None:
    values = Permutation(100, seed=0).at(np.arange(12, dtype=np.int32).reshape(3, 4))
    assert values.shape == (3, 4)
    assert values.dtype == np.int64
    assert Permutation(7, seed=0).at(np.zeros(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("position", [-1, 10])
def test_refuses_positions_out_of_range(position: int) -> None:
    with pytest.raises(IndexError, match=r"must lie in 0\.\.9"):
        Permutation(10, seed=0)(position)


def test_refuses_fractions() -> None:
    with pytest.raises(IndexError, match="float64"):
        Permutation(10, seed=0).at(np.array([0.5]))


@pytest.mark.parametrize("size", [0, -3, 2**62 + 1])
def test_refuses_sizes_out_of_range(size: int) -> None:
    with pytest.raises(ValueError, match="size="):
        Permutation(size, seed=0)


def test_fold_seed_tells_names_apart() -> None:
    seeds = {fold_seed(0), fold_seed(1), fold_seed(0, 1), fold_seed(0, "1"), fold_seed(0, "a", "b"), fold_seed(0, "ab")}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_fill_their_64_bits_and_are_each_rows_own():
    numbers = draws(3, "masks", np.array([0, 1, 10**12]), 4096)
    assert len(np.unique(numbers)) == numbers.size
    ones = np.unpackbits(numbers.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert (abs(ones - 0.5) < 5 * 0.5 / numbers.size**0.5).all()
    np.testing.assert_array_equal(draws(3, "masks", np.array([10**12]), 7)[0], numbers[2, :7])
    assert not np.isin(draws(3, "spans", np.array([0]), 4096), numbers).any()
    assert not np.isin(draws(4, "masks", np.array([0]), 4096), numbers).any()


def test_draws_are_the_same_in_every_version():
    # By hand, in Python's own integers.
    def mix(value):
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    begin = mix((9 + fold_seed(3, "draws", "masks")) % 2**64)
    expected = [mix((begin + step * 0x9E3779B97F4A7C15) % 2**64) for step in (1, 2, 3)]
    assert draws(3, "masks", np.array([9]), 3).tolist() == [expected]
