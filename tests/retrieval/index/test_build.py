import json

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.mesh import mesh_from_text
from retrieval.index.build import BuildOptions, build_index
from retrieval.index.folder import open_index
from retrieval.index.parameters import IndexRequest
from retrieval.search.exact import exact_topk
from tests.retrieval.small_vectors import clustered_rows, small_docs, unit_rows, write_vectors

NUM_ROWS, NUM_DIMS = 2600, 16
REQUESTS = {
    "flat": IndexRequest(kind="flat"),
    "ivf_flat": IndexRequest(kind="ivf_flat", nlist=32, nprobe=8),
    "ivf_pq": IndexRequest(kind="ivf_pq", nlist=16, nprobe=8, num_subvectors=8, num_bits=4),
    "hnsw": IndexRequest(kind="hnsw", num_neighbors=16, ef_construction=60, ef_search=40),
}
kinds = pytest.mark.parametrize("kind", list(REQUESTS))


@pytest.fixture(scope="module")
def mesh():
    return mesh_from_text("data=2@0-1")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "v"
    return write_vectors(path, clustered_rows(0, NUM_ROWS, NUM_DIMS))


@pytest.fixture(scope="module")
def built(vectors, mesh, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    return {kind: build_index(vectors, folder / kind, request, mesh) for kind, request in REQUESTS.items()}


@kinds
def test_measured_recall_is_that_of_leaving_the_row_itself_out(built, vectors, kind):
    measured = built[kind].description.recall
    assert (measured.k, measured.num_queries) == (10, 256)
    rows = vectors.read()
    own = np.sort(np.random.default_rng(0).choice(NUM_ROWS, 256, replace=False))
    shares = []
    for row in own:
        scores = rows.astype(np.float64) @ rows[row].astype(np.float64)
        others = [r for r in np.argsort(-scores, kind="stable") if r != row][:10]
        found = [r for r in built[kind].index.search(rows[row : row + 1], 11).rows[0] if r != row][:10]
        shares.append(len(set(others) & set(found)) / 10)
    assert measured.value == pytest.approx(np.mean(shares), abs=1e-3)
    assert built[kind].manifest.counts["recall_at_10"] == measured.value
    assert measured.value > 0.8


def test_flat_is_exact(built, vectors, mesh):
    queries = unit_rows(1, 20, NUM_DIMS)
    found = built["flat"].index.search(queries, 10)
    exact = exact_topk(queries, vectors.read(), 10, mesh)
    np.testing.assert_array_equal(found.rows, exact.rows)
    assert built["flat"].description.recall.value == 1.0


def test_refined_scores_are_the_true_ones(built, vectors, mesh):
    queries = unit_rows(2, 20, NUM_DIMS)
    found = built["ivf_pq"].index.search(queries, 10)
    rows = vectors.read()
    np.testing.assert_allclose(found.scores, np.einsum("qke,qe->qk", rows[found.rows], queries), atol=1e-6)
    coarse = build_index(
        vectors, built["ivf_pq"].path.with_name("coarse"), IndexRequest(kind="ivf_pq", refine_factor=0), mesh
    )
    assert not (coarse.path / "vectors").exists()
    assert coarse.description.recall.value < built["ivf_pq"].description.recall.value


@kinds
def test_results_are_in_order_and_no_row_comes_twice(built, kind):
    found = built[kind].index.search(unit_rows(3, 5, NUM_DIMS), 50)
    for rows, scores in zip(found.rows, found.scores, strict=True):
        listed = rows[rows >= 0].tolist()
        assert len(set(listed)) == len(listed) > 0
        assert list(zip(-scores, rows, strict=True)) == sorted(zip(-scores, rows, strict=True))
        assert (scores[rows < 0] == -np.inf).all()


@kinds
def test_the_same_bytes_in_every_build(built, vectors, mesh, kind, tmp_path):
    again = build_index(vectors, tmp_path / "again", REQUESTS[kind], mesh)
    assert again.manifest.identity == built[kind].manifest.identity


def test_the_manifest_names_parents_and_parameters(built, vectors):
    manifest = built["ivf_flat"].manifest
    assert manifest.parents == {"vectors": vectors.manifest.identity, **vectors.manifest.parents}
    assert manifest.config["parameters"] == {"type": "IvfFlat", "nlist": 32, "nprobe": 8}
    assert manifest.config == json.loads((built["ivf_flat"].path / "index.json").read_text())
    assert built["ivf_flat"].read_ids() == [doc.id for doc in small_docs(NUM_ROWS)]


def test_k_above_n_gives_all_rows(built):
    assert built["flat"].index.search(unit_rows(4, 1, NUM_DIMS), 10**6).rows.shape == (1, NUM_ROWS)


def test_given_queries_are_what_recall_is_measured_on(vectors, mesh, tmp_path):
    queries = unit_rows(5, 40, NUM_DIMS)
    request = IndexRequest(kind="ivf_flat", nlist=32, nprobe=1)
    index = build_index(vectors, tmp_path / "i", request, mesh, queries=queries)
    exact = exact_topk(queries, vectors.read(), 10, mesh)
    found = index.index.search(queries, 10)
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.rows, exact.rows, strict=True)]
    assert index.description.recall.queries == "given"
    assert index.description.recall.value == pytest.approx(np.mean(shares))
    assert index.description.recall.value < 1


def test_equal_vectors_stand_for_each_other_in_recall(mesh, tmp_path):
    rows = np.repeat(unit_rows(6, 10, 8), 30, axis=0)
    index = build_index(write_vectors(tmp_path / "v", rows), tmp_path / "i", IndexRequest(kind="hnsw"), mesh)
    assert index.description.recall.value == 1.0


def test_one_vector_can_be_indexed_but_not_measured(mesh, tmp_path):
    index = build_index(write_vectors(tmp_path / "v", unit_rows(7, 1, 8)), tmp_path / "i", REQUESTS["flat"], mesh)
    assert index.description.recall.value is None
    assert "recall_at_10" not in index.manifest.counts
    assert index.index.search(unit_rows(8, 1, 8), 3).rows.tolist() == [[0]]


@kinds
def test_one_flipped_bit_is_found_before_faiss_sees_it(built, vectors, mesh, kind, tmp_path):
    path = build_index(vectors, tmp_path / "i", REQUESTS[kind], mesh).path
    content = bytearray((path / "index.faiss").read_bytes())
    content[int(np.random.default_rng(0).integers(len(content)))] ^= 1
    (path / "index.faiss").write_bytes(content)
    with pytest.raises(VerificationError, match=r"index\.faiss"):
        open_index(path)
    assert not open_index(path, check="sizes").verified


def test_bad_input_is_refused(built, vectors, mesh, tmp_path):
    with pytest.raises(DataError, match="needs at least 9,984 vectors"):
        build_index(vectors, tmp_path / "i", IndexRequest(kind="ivf_pq", num_bits=8), mesh)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="exists already"):
        build_index(vectors, built["flat"].path, REQUESTS["flat"], mesh)
    with pytest.raises(DataError, match=r"holds jaxscale.vectors, expected jaxscale.index"):
        open_index(vectors.path)
    with pytest.raises(UsageError, match="k=0"):
        built["flat"].index.search(unit_rows(9, 1, NUM_DIMS), 0)
    with pytest.raises(UsageError, match=r"\(1, 3\) can't search an index of 16 dims"):
        built["flat"].index.search(unit_rows(9, 1, 3), 1)
    with pytest.raises(UsageError, match="num_threads=0"):
        BuildOptions(num_threads=0)
