import faiss
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import mesh_from_text
from retrieval.search.exact import ExactSearcher, exact_topk


def reference(queries, docs, k):
    """Brute force: float64 inner products rounded to float32, sorted by score, then by row."""
    scores = np.array([[np.sum(q.astype(np.float64) * d) for d in docs] for q in queries]).astype(np.float32)
    order = np.array([sorted(range(len(docs)), key=lambda row: (-s[row], row))[:k] for s in scores])
    return order, np.take_along_axis(scores, order, axis=1)


def vectors(seed, num_rows, num_dims):
    return np.random.default_rng(seed).normal(size=(num_rows, num_dims)).astype(np.float32)


@pytest.fixture(scope="module")
def mesh():
    return mesh_from_text("")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.sampled_from([1, 3, 8, 61]),
    k=st.sampled_from([1, 5, 61, 100]),
    num_distinct=st.sampled_from([1, 4, 61]),
)
def test_planted_ties_come_in_the_order_of_rows(mesh, seed, num_rows, k, num_distinct):
    rng = np.random.default_rng(seed)
    docs = vectors(seed, num_distinct, 16)[rng.integers(0, num_distinct, num_rows)]
    queries = vectors(seed + 1, 3, 16)
    found = exact_topk(queries, docs, k, mesh)
    rows, scores = reference(queries, docs, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)


def test_more_equal_rows_than_candidates_still_come_in_order(mesh):
    docs = np.repeat(vectors(0, 2, 8), 200, axis=0)[np.random.default_rng(0).permutation(400)]
    queries = vectors(1, 4, 8)
    found = exact_topk(queries, docs, 10, mesh)
    np.testing.assert_array_equal(found.rows, reference(queries, docs, 10)[0])


def test_a_zero_query_gets_the_first_rows(mesh):
    found = exact_topk(np.zeros((1, 8), np.float32), vectors(0, 100, 8), 5, mesh)
    assert found.rows.tolist() == [[0, 1, 2, 3, 4]]
    assert found.scores.tolist() == [[0.0] * 5]


def test_equals_faiss_flat_wherever_scores_differ(mesh):
    docs, queries = vectors(2, 3000, 48), vectors(3, 300, 48)
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    flat = faiss.IndexFlatIP(48)
    flat.add(docs)
    faiss_scores, faiss_rows = flat.search(queries, 11)
    found = exact_topk(queries, docs, 10, mesh)
    np.testing.assert_allclose(found.scores, faiss_scores[:, :10], atol=1e-6)
    gaps = -np.diff(faiss_scores, axis=1)
    apart = (gaps > 1e-6) & (np.pad(gaps, ((0, 0), (1, 0)), constant_values=1)[:, :10] > 1e-6)
    assert apart.mean() > 0.99
    np.testing.assert_array_equal(found.rows[apart], faiss_rows[:, :10][apart])


@pytest.mark.parametrize("text", ["data=2,fsdp=2,tensor=2", "data=3@0-2", "data=1@0"])
def test_every_mesh_gives_the_same_bits(mesh, text):
    docs, queries = vectors(4, 257, 24), vectors(5, 17, 24)
    everywhere, here = (exact_topk(queries, docs, 7, m) for m in (mesh, mesh_from_text(text)))
    np.testing.assert_array_equal(everywhere.rows, here.rows)
    np.testing.assert_array_equal(everywhere.scores, here.scores)


def test_rows_are_really_spread_over_the_devices(mesh):
    searcher = ExactSearcher(vectors(6, 64, 4), mesh)
    shapes = {shard.data.shape for shard in searcher._rows.addressable_shards}
    assert shapes == {(64 // len(jax.devices()), 4)}


def test_bad_input_is_refused(mesh):
    docs = vectors(7, 10, 4)
    with pytest.raises(UsageError, match="k=0 must be at least 1"):
        exact_topk(docs, docs, 0, mesh)
    with pytest.raises(UsageError, match=r"\(10, 3\) can't search vectors of 4 dims"):
        exact_topk(docs[:, :3], docs, 1, mesh)
    with pytest.raises(DataError, match="queries: row 2 has a value that is not finite"):
        exact_topk(np.where(np.arange(10)[:, None] == 2, np.nan, docs).astype(np.float32), docs, 1, mesh)
    with pytest.raises(DataError, match="no vectors"):
        exact_topk(docs, docs[:0], 1, mesh)
