"""Which candidates for `tensor` there are in a graph made by hand, and which comes first."""

import pytest

from jaxscale.sharding.graph import Contraction, Graph, Leaf, Operand, Reduction
from jaxscale.sharding.pairs import pairs_of

# Factors: the examples, the stream in and out, and two hidden dims of the same size.
B, D, X, Y = range(4)
SIZES = {B: 16, D: 6, X: 8, Y: 8}


def matmul(contracted, made, *, value, num_inputs=100, num_outputs=100, num_runs=1):
    """Data [B contracted] times a parameter [contracted made]."""
    return Contraction(
        left=Operand(value=value, is_data=True, num_elements=num_inputs, parameters=frozenset(), free=(B,)),
        right=Operand(value=99, is_data=False, num_elements=48, parameters=frozenset({0}), free=(made,)),
        contracted=(contracted,),
        batch=(),
        num_outputs=num_outputs,
        num_flops=1000,
        num_runs=num_runs,
    )


def graph(*contractions, reductions=(), scanned=frozenset()):
    leaves = tuple(
        Leaf(
            role="parameter",
            path=str(i),
            shape=tuple(SIZES[f] for f in factors),
            dtype="float32",
            num_bytes=0,
            dims=tuple((f,) for f in factors),
        )
        for i, factors in enumerate([(D, X), (X, D), (D, Y), (Y, D)])
    )
    return Graph(
        leaves=leaves,
        sizes=SIZES,
        contractions=contractions,
        reductions=reductions,
        scanned=scanned,
        looked_up=frozenset(),
        not_understood=(),
    )


def order(*contractions, num_parts=4, **options):
    """The hidden dims that can be split `num_parts` ways, best first; D, of 6, can't be split 4 ways."""
    return [pair.factors for pair in pairs_of(graph(*contractions, **options), num_parts) if pair.illegal is None]


def blocks(x=None, y=None):
    """Up and down through X, then through Y; `x` and `y` change the two matmuls of theirs."""
    (x_up, x_down), (y_up, y_down) = x or ({}, {}), y or ({}, {})
    return [
        matmul(D, X, value=1, **x_up),
        matmul(X, D, value=2, **x_down),
        matmul(D, Y, value=3, **y_up),
        matmul(Y, D, value=4, **y_down),
    ]


def test_a_tie_goes_to_the_first_use():
    assert order(*blocks()) == [(X,), (Y,)]
    assert order(*reversed(blocks())) == [(Y,), (X,)]


@pytest.mark.parametrize(
    "x",
    [({}, {"num_outputs": 101}), ({"num_inputs": 101}, {})],
    ids=["more partial sums forward", "more partial sums backward"],
)
def test_moving_more_comes_later(x):
    assert order(*blocks(x=x)) == [(Y,), (X,)]


def test_a_norm_over_a_hidden_dim_makes_it_dearer():
    norm = Reduction(reduced=frozenset({X}), num_outputs=1, num_runs=1)
    assert order(*blocks(), reductions=[norm]) == [(Y,), (X,)]


def test_columns_that_read_the_same_value_share_its_gradients_sum():
    """Gate and up: twice the columns for one sum backward, so Y is cheaper per FLOP."""
    assert order(*blocks(), matmul(D, Y, value=3)) == [(Y,), (X,)]
    apart = [matmul(D, Y, value=5, num_inputs=301)]
    assert order(*blocks(), *apart) == [(X,), (Y,)]


def test_runs_count():
    dear = {"num_outputs": 150}
    assert order(*blocks(x=({"num_runs": 9}, {"num_runs": 9}))) == [(X,), (Y,)]
    assert order(*blocks(x=({}, {**dear, "num_runs": 2}))) == [(Y,), (X,)]


def test_what_a_scan_goes_through_is_no_candidate():
    assert order(*blocks(), scanned=frozenset({X})) == [(Y,)]


def test_what_is_only_made_or_only_contracted_is_no_candidate():
    assert order(matmul(D, X, value=1), matmul(Y, D, value=4)) == []


def test_a_size_that_does_not_divide_says_which_do():
    illegal = {pair.factors: pair.illegal for pair in pairs_of(graph(*blocks()), 4)}
    assert illegal[(D,)] == "6 pieces can't be shared by 4; sizes that can: 1, 2, 3, 6"
    assert order(*blocks(), num_parts=2).count((D,)) == 1
