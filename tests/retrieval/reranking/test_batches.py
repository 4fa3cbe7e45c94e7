"""Groups: the relevant document first, negatives that are not, whole queries; a pure function of the batch's number."""

import json

import numpy as np
import pytest

from jaxscale.errors import DataError
from tests.retrieval.reranking.small_groups import tiny_reranker_job
from tests.retrieval.towers.small_pairs import write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def groups_of(objective, step):
    """The documents of a batch's groups, found by their tokens, and the rows of its queries."""
    groups, batch = objective.groups, objective.batch(step)
    frame, length = groups.frame, groups.buckets[-1]
    query_rows = groups.table.pairs[groups.schedule.indices(step), 0]
    documents = groups.documents.rows(np.arange(len(groups.documents)))
    found = []
    for query_row, tokens, mask in zip(query_rows, batch["tokens"], batch["mask"], strict=True):
        (query,) = groups.queries.rows(np.array([query_row]))
        joined = {tuple(frame.join(query, ids, length)[0].tolist()): row for row, ids in enumerate(documents)}
        found.append([joined[tuple(text[kept].tolist())] for text, kept in zip(tokens, mask, strict=True)])
    return query_rows, np.array(found)


def test_random_negatives_are_other_documents_none_of_them_relevant(folder):
    objective = tiny_reranker_job(folder).objective()
    table, drawn = objective.groups.table, set()
    for step in range(4):
        query_rows, documents = groups_of(objective, step)
        assert documents.shape == (16, 4)
        pairs = table.pairs[objective.groups.schedule.indices(step)]
        np.testing.assert_array_equal(documents[:, 0], pairs[:, 1])
        for query_row, group in zip(query_rows, documents, strict=True):
            assert len(set(group)) == 4
            assert not set(group[1:]) & set(table.known_positives[query_row].tolist())
            drawn |= set(group[1:])
    assert len(drawn) > 60  # of 96: drawn out of the whole corpus
    first, again, later = (objective.batch(step) for step in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["tokens"], later["tokens"])


def test_hard_negatives_are_those_of_the_file(folder, tmp_path):
    file = tmp_path / "negatives.jsonl"
    queries = tiny_reranker_job(folder).objective().groups.table.query_ids
    hard = {query: [f"d{(int(query[1:].split('-')[0]) + step) % 96}" for step in range(3, 8)] for query in queries}
    file.write_text("".join(json.dumps({"query_id": query, "doc_ids": docs}) + "\n" for query, docs in hard.items()))
    for draws in ("step", "epoch"):
        data = {"hard_negatives": str(file), "hard_negative_draws": draws}
        objective = tiny_reranker_job(folder, data=data).objective()
        query_rows, documents = groups_of(objective, 0)
        for query_row, group in zip(query_rows, documents, strict=True):
            assert {f"d{row}" for row in group[1:]} <= set(hard[objective.groups.table.query_ids[query_row]])
    with pytest.raises(DataError, match="has 5 different hard negatives"):
        tiny_reranker_job(folder, data=data | {"num_negatives": 6}).objective()


def test_batches_have_the_shapes_they_say_and_types(folder):
    objective = tiny_reranker_job(folder).objective()
    batch = objective.batch(0)
    shapes = [{name: (leaf.shape, leaf.dtype) for name, leaf in of.items()} for of in objective.batch_shapes()]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} in shapes
    assert set(np.unique(batch["types"][batch["mask"]])) == {0, 1}
    assert (batch["types"][:, :, 0] == 0).all()


def test_a_query_that_leaves_no_room_and_a_corpus_too_small_are_bad_data(folder):
    with pytest.raises(DataError, match=r"leave no room for a document among max_length=7"):
        tiny_reranker_job(folder, data={"buckets": (7,)}).objective()
    with pytest.raises(DataError, match=r"num_negatives=95, but of the corpus's 96 documents up to 2"):
        tiny_reranker_job(folder, data={"num_negatives": 95}).objective()
