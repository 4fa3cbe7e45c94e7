import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.errors import UsageError
from retrieval.search.fusion import choose_dense_weight, reciprocal_rank_fusion, zscore_fusion
from retrieval.search.topk import TopK


def result(*queries):
    """A result from one `{row: score}` for each query, all of one length."""
    best_first = [sorted(q.items(), key=lambda item: -item[1]) for q in queries]
    return TopK(
        rows=np.array([[row for row, _ in q] for q in best_first], np.int64),
        scores=np.array([[score for _, score in q] for q in best_first], np.float32),
    )


def zscores(listed):
    values = np.array(list(listed.values()), np.float32).astype(np.float64)
    if len(set(values)) == 1:
        return dict.fromkeys(listed, 0.0)
    return dict(zip(listed, (values - values.mean()) / values.std(), strict=True))


lists = st.dictionaries(st.integers(0, 20), st.integers(0, 8), min_size=4, max_size=4)


@given(dense=lists, bm25=lists, weight=st.sampled_from([0.05, 0.5, 0.9]))
def test_the_sum_of_z_scores_with_the_lists_minimum_for_the_missing(dense, bm25, weight):
    z_dense, z_bm25 = zscores(dense), zscores(bm25)
    expected = {
        row: np.float32(
            weight * z_dense.get(row, min(z_dense.values())) + (1 - weight) * z_bm25.get(row, min(z_bm25.values()))
        )
        for row in sorted({*dense, *bm25})
    }
    fused = zscore_fusion(result(dense), result(bm25), dense_weight=weight, k=8)
    found = {int(r): s for r, s in zip(fused.rows[0], fused.scores[0], strict=True) if r >= 0}
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[r] for r in expected], list(expected.values()), atol=1e-6)
    assert fused.scores[0].tolist() == sorted(fused.scores[0].tolist(), reverse=True)


@pytest.mark.parametrize(("weight", "alone"), [(0.0, "bm25"), (1.0, "dense")])
def test_a_list_of_weight_zero_adds_nothing(weight, alone):
    lists = {"dense": {1: 0.9, 2: 0.8, 3: 0.1}, "bm25": {9: 4.0, 8: 3.0, 3: 0.0}}
    fused = zscore_fusion(result(lists["dense"]), result(lists["bm25"]), dense_weight=weight, k=4)
    assert fused.rows[0].tolist() == [*lists[alone], -1]
    assert fused.scores[0, 3] == -np.inf


def test_equal_scores_count_for_nothing():
    fused = zscore_fusion(result({1: 0.9, 2: 0.1}), result({7: 0.0, 8: 0.0}), dense_weight=0.3, k=4)
    assert fused.rows[0].tolist() == [1, 2, 7, 8]


def test_reciprocal_ranks():
    fused = reciprocal_rank_fusion(result({4: 0.9, 2: 0.5}), result({2: 8.0, 6: 1.0}), k=3, constant=60)
    assert fused.rows[0].tolist() == [2, 4, 6]
    np.testing.assert_allclose(fused.scores[0], [1 / 62 + 1 / 61, 1 / 61, 1 / 62], rtol=1e-6)


def test_the_weight_is_the_best_of_the_grid_and_of_equals_the_smallest():
    dense, bm25 = result({1: 0.9, 2: 0.1}, {1: 0.9, 2: 0.1}), result({2: 5.0, 1: 1.0}, {1: 5.0, 2: 1.0})

    def first_is_one(top):
        return float(np.mean(top.rows[:, 0] == 1))

    chosen = choose_dense_weight(dense, bm25, first_is_one, k=2, grid=(0.0, 0.4, 0.6, 0.8))
    assert chosen.dense_weight == 0.6
    assert chosen.measured == ((0.0, 0.5), (0.4, 0.5), (0.6, 1.0), (0.8, 1.0))
    assert choose_dense_weight(dense, bm25, lambda top: 1.0, k=2).dense_weight == 0.0


def test_bad_input_is_refused():
    one, two = result({1: 1.0}), result({1: 1.0}, {1: 1.0})
    with pytest.raises(UsageError, match=r"dense_weight=1.5 must be between 0"):
        zscore_fusion(one, one, dense_weight=1.5, k=1)
    with pytest.raises(UsageError, match="got 2 dense and 1 of BM25"):
        zscore_fusion(two, one, dense_weight=0.5, k=1)
    with pytest.raises(UsageError, match="k=0"):
        reciprocal_rank_fusion(one, one, k=0)
    with pytest.raises(UsageError, match="constant=-1"):
        reciprocal_rank_fusion(one, one, k=1, constant=-1)
