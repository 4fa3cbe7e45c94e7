import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.errors import DataError, UsageError
from retrieval.index.parameters import POINTS_PER_CENTROID, Hnsw, IndexRequest, IvfFlat, IvfPq, choose_parameters


@given(num_rows=st.integers(39, 10_000_000))
def test_chosen_cells_can_be_trained(num_rows):
    chosen = choose_parameters(IndexRequest(kind="ivf_flat"), num_rows, 64)
    assert isinstance(chosen, IvfFlat)
    assert chosen.nlist * POINTS_PER_CENTROID <= num_rows
    assert 1 <= chosen.nprobe <= chosen.nlist


@pytest.mark.parametrize(
    ("num_rows", "num_dims", "num_bits", "num_subvectors"),
    [(1_000_000, 384, 8, 96), (9_984, 128, 8, 32), (9_983, 128, 6, 32), (700, 30, 4, 15), (700, 7, 4, 1)],
)
def test_codes_follow_the_number_of_vectors_and_dims(num_rows, num_dims, num_bits, num_subvectors):
    chosen = choose_parameters(IndexRequest(kind="ivf_pq"), num_rows, num_dims)
    assert isinstance(chosen, IvfPq)
    assert (chosen.num_bits, chosen.num_subvectors, chosen.refine_factor) == (num_bits, num_subvectors, 10)


def test_what_is_asked_for_is_taken():
    request = IndexRequest(kind="hnsw", num_neighbors=8, ef_construction=50, ef_search=20)
    assert choose_parameters(request, 100, 16) == Hnsw(num_neighbors=8, ef_construction=50, ef_search=20)
    chosen = choose_parameters(IndexRequest(kind="ivf_flat", nlist=5, nprobe=5), 1000, 16)
    assert chosen == IvfFlat(nlist=5, nprobe=5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"kind": "ivf_flat"}, r"nlist=1 needs at least 39 vectors .* got 38"),
        ({"kind": "ivf_flat", "nlist": 64}, r"nlist=64 needs at least 2,496 vectors to train k-means"),
        ({"kind": "ivf_pq"}, r"num_bits=4 needs at least 624 vectors .* got 38: use"),
    ],
)
def test_too_few_vectors_name_the_minimum(request_, message):
    with pytest.raises(DataError, match=message):
        choose_parameters(IndexRequest(**request_), 38, 16)


def test_unfit_parameters_are_refused():
    with pytest.raises(UsageError, match="a flat index has no nlist; it takes no parameters"):
        IndexRequest(kind="flat", nlist=4)
    with pytest.raises(UsageError, match="a hnsw index has no nprobe; it takes num_neighbors"):
        IndexRequest(kind="hnsw", nprobe=4)
    with pytest.raises(UsageError, match="nprobe=9 must be between 1 and nlist=4"):
        choose_parameters(IndexRequest(kind="ivf_flat", nlist=4, nprobe=9), 1000, 16)
    with pytest.raises(UsageError, match="num_subvectors=5 must divide the dims 16; use 1, 2, 4, 8, 16"):
        choose_parameters(IndexRequest(kind="ivf_pq", num_subvectors=5), 1000, 16)
    with pytest.raises(UsageError, match="num_bits=20"):
        choose_parameters(IndexRequest(kind="ivf_pq", num_bits=20), 10**9, 16)
    with pytest.raises(UsageError, match="refine_factor=-1"):
        choose_parameters(IndexRequest(kind="ivf_pq", refine_factor=-1), 10_000, 16)
