"""Batches: right texts beside their queries, few shapes, and batch n a pure function of its arguments."""

import json

import jax
import numpy as np
import pytest

from retrieval.towers.in_batch import NO_DOCUMENT
from tests.retrieval.towers.small_pairs import made_up_records, tiny_job, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def texts(objective, tokens, mask):
    return [objective.tokenizer.decode(row[kept]) for row, kept in zip(tokens, mask, strict=True)]


def test_row_i_holds_a_query_and_its_own_document(folder):
    objective = tiny_job(folder).objective()
    docs, queries, qrels = made_up_records()
    by_id, asked = {doc.id: doc for doc in docs}, {query.id: query.text for query in queries}
    passages = {(asked[query], by_id[doc].passage) for query in qrels["train"] for doc in qrels["train"][query]}
    for step in range(3):
        batch = objective.batch(step)
        query_texts = texts(objective, batch["query_tokens"], batch["query_mask"])
        own = texts(objective, batch["document_tokens"][:, 0], batch["document_mask"][:, 0])
        assert set(zip(query_texts, own, strict=True)) <= passages
        named = [docs[row].passage for row in batch["document_ids"][:, 0]]
        assert own == named
        assert (batch["document_ids"][:, :1] == batch["known_positives"]).any(axis=1).all()


def test_batch_n_is_a_pure_function_of_n_and_seed(folder):
    first, again = tiny_job(folder).objective(), tiny_job(folder).objective()
    for step in (7, 0, 3):
        for name, leaf in first.batch(step).items():
            np.testing.assert_array_equal(leaf, again.batch(step)[name])
    other = tiny_job(folder, training={"seed": 1}).objective()
    assert not np.array_equal(first.batch(0)["document_ids"], other.batch(0)["document_ids"])


def test_every_pair_is_seen_once_an_epoch(folder):
    objective = tiny_job(folder).objective()
    num_batches = objective.pairs.schedule.num_batches_per_epoch
    num_rows = num_batches * objective.pairs.schedule.global_batch_size
    seen = [
        (tuple(row[kept]), document)
        for batch in map(objective.batch, range(num_batches))
        for row, kept, document in zip(
            batch["query_tokens"], batch["query_mask"], batch["document_ids"][:, 0], strict=True
        )
    ]
    assert len(set(seen)) == len(seen) == num_rows


def test_shapes_come_from_the_buckets(folder):
    job = tiny_job(folder, data={"query_buckets": (4, 6, 12), "document_buckets": (8, 16, 32)})
    objective = job.objective()
    named = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) for shapes in objective.batch_shapes()]
    made = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), objective.batch(step)) for step in range(20)]
    assert len(named) == 3 * 3
    assert all(shapes in named for shapes in made)
    shapes = {objective.batch(step)["query_tokens"].shape[1] for step in range(20)}
    assert shapes <= {4, 6, 12}
    assert {objective.batch(step)["document_tokens"].shape[2] for step in range(20)} <= {8, 16, 32}
    assert objective.pairs.queries.offsets[1:].size == len(objective.pairs.table.query_ids)
    assert np.diff(objective.pairs.documents.offsets).max() <= 32


def test_documents_carry_the_group_of_their_near_duplicates(folder):
    """Every document is its own group but for those that share a shingle set, of which there are none here."""
    job = tiny_job(folder, data={"duplicate_jaccard": 0.8})
    objective = job.objective()
    batch = objective.batch(0)
    np.testing.assert_array_equal(batch["document_groups"], batch["document_ids"])
    assert "document_groups" not in tiny_job(folder).objective().batch(0)
    shapes = [{name: leaf.shape for name, leaf in of.items()} for of in (batch, objective.batch_shapes()[0])]
    assert shapes[0] == shapes[1]
    assert job.planned_step().batch["document_groups"].shape == batch["document_ids"].shape


def test_hard_negatives_of_an_epoch_come_beside_their_query(folder, tmp_path):
    """With 2 of 10 negatives a step, no query sees one twice in five epochs, whatever batches these are."""
    _, _, qrels = made_up_records()
    path, others = tmp_path / "negatives.jsonl", [f"d{number}" for number in range(0, 80, 8)]
    path.write_text("".join(json.dumps({"query_id": q, "doc_ids": others}) + "\n" for q in qrels["train"]))
    data = {"hard_negatives": str(path), "num_hard_negatives": 2, "hard_negative_draws": "epoch"}
    objective = tiny_job(folder, data=data).objective()
    seen = {}
    for number in range(5 * objective.pairs.schedule.num_batches_per_epoch):
        batch = objective.batch(number)
        for tokens, ids in zip(batch["query_tokens"].tolist(), batch["document_ids"].tolist(), strict=True):
            seen.setdefault((*tokens, ids[0]), []).extend(ids[1:])
    of_one_pair = [negatives for key, negatives in seen.items() if key[-1] not in (1, 2)]
    assert max(map(len, of_one_pair)) == 10
    assert all(len(set(negatives)) == len(negatives) for negatives in of_one_pair)
    assert len({tuple(negatives) for negatives in of_one_pair}) > len(of_one_pair) // 2


def test_hard_negatives_stand_beside_their_query(folder, tmp_path):
    _, _, qrels = made_up_records()
    path = tmp_path / "negatives.jsonl"
    lists = {query: [f"d{8 * (row % 5)}", f"d{8 * (5 + row % 7)}"] for row, query in enumerate(qrels["train"])}
    path.write_text("".join(json.dumps({"query_id": q, "doc_ids": ids}) + "\n" for q, ids in lists.items()))
    objective = tiny_job(folder, data={"hard_negatives": str(path), "num_hard_negatives": 2}).objective()
    batch = objective.batch(0)
    assert batch["document_tokens"].shape[:2] == (16, 3)
    table, docs = objective.pairs.table, objective.pairs.documents
    for row, (known, ids) in enumerate(zip(batch["known_positives"], batch["document_ids"], strict=True)):
        owners = [q for q, rows in zip(table.query_ids, table.known_positives, strict=True) if (rows == known).all()]
        allowed = [{int(doc[1:]) for doc in lists[q]} for q in owners]
        assert set(ids[1:].tolist()) in allowed
        assert ids[0] in known[known != NO_DOCUMENT]
        for place, document in enumerate(ids):
            kept = batch["document_mask"][row, place]
            np.testing.assert_array_equal(batch["document_tokens"][row, place][kept], docs.rows([document])[0])
