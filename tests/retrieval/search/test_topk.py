import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.errors import UsageError
from retrieval.search.topk import best_of_all, ranked, require_positive_k

few_values = st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0]), min_size=1, max_size=40)


@given(scores=few_values, k=st.integers(1, 50))
def test_best_of_all_is_a_sort_by_score_then_row(scores, k):
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert best_of_all(np.array(scores, np.float32), k).tolist() == expected


@given(scores=few_values, k=st.integers(1, 50), seed=st.integers(0, 1000))
def test_ranked_does_not_depend_on_the_candidates_order(scores, k, seed):
    rows = np.random.default_rng(seed).permutation(len(scores))
    values = np.array(scores, np.float32)
    kept = ranked(rows, values[rows], k)
    assert rows[kept].tolist() == best_of_all(values, k).tolist()


def test_k_below_one_is_refused():
    with pytest.raises(UsageError, match="k=-1 must be at least 1"):
        require_positive_k(-1)
