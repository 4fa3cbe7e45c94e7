"""Batches within sources told by ids, and within clusters told by a file."""

import json

import numpy as np
import pytest

from jaxscale.errors import DataError
from tests.retrieval.towers.small_pairs import made_up_records, tiny_job, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def clusters_file(path, lines=None):
    """Documents of one cluster have numbers of one remainder by 5, or what `lines` say."""
    by_number = [{"doc_id": doc.id, "cluster": int(doc.id[1:]) % 5} for doc in made_up_records()[0]]
    path.write_text("".join(json.dumps(line) + "\n" for line in (by_number if lines is None else lines)))
    return str(path)


def test_batches_hold_documents_of_one_cluster(folder, tmp_path):
    job = tiny_job(folder, data={"clusters": clusters_file(tmp_path / "clusters.jsonl")})
    objective = job.objective()
    sizes, num_batches = objective.pairs.schedule.sizes, objective.pairs.schedule.num_batches_per_epoch
    held = [set((objective.batch(number)["document_ids"][:, 0] % 5).tolist()) for number in range(num_batches)]
    assert len(sizes) == 5
    assert sum(len(clusters) == 1 for clusters in held) >= sum(size // 16 for size in sizes.tolist())
    assert set().union(*held) == {0, 1, 2, 3, 4}
    again = job.objective()
    for number in (3, 0):
        np.testing.assert_array_equal(objective.batch(number)["query_tokens"], again.batch(number)["query_tokens"])


def test_crops_are_in_the_group_of_their_document(folder):
    """Every id begins with `d`, so there is one source."""
    pairs = tiny_job(folder, data={"source_separator": "d", "crops_per_document": 2}).objective().pairs
    assert pairs.schedule.sizes.tolist() == [len(pairs.table.pairs) + 2 * len(pairs.cropped_rows)]


def test_the_identity_knows_the_file_of_clusters_by_its_hash(folder, tmp_path):
    path = tmp_path / "clusters.jsonl"
    one = tiny_job(folder, data={"clusters": clusters_file(path)}).objective().identity
    path.write_text(path.read_text().replace('"cluster": 4', '"cluster": 3'))
    other = tiny_job(folder, data={"clusters": str(path)}).objective().identity
    assert str(path) not in json.dumps(one)
    assert one["data"]["clusters"] != other["data"]["clusters"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"doc_id": "d1", "cluster": "a"}] * 2, r"clusters\.jsonl:2: document 'd1' stands in the file twice"),
        ([{"doc_id": "elsewhere", "cluster": 0}], "document 'elsewhere' is not in corpus.jsonl"),
        ([{"doc_id": "d1"}], r"clusters\.jsonl:1"),
        ([{"doc_id": "d1", "cluster": 1}], "document 'd2' has a query, but no line"),
    ],
)
def test_a_file_of_clusters_that_does_not_fit_is_refused(folder, tmp_path, lines, said):
    path = clusters_file(tmp_path / "clusters.jsonl", lines)
    with pytest.raises(DataError, match=said):
        tiny_job(folder, data={"clusters": path}).objective()


def test_an_id_without_the_separator_and_a_missing_file_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="has no source_separator='-' in its id"):
        tiny_job(folder, data={"source_separator": "-"}).objective()
    with pytest.raises(DataError, match="clusters: there is no file"):
        tiny_job(folder, data={"clusters": str(tmp_path / "nothing.jsonl")}).objective()
