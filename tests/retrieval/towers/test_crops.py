"""Crops: spans of a document's own tokens, framed as queries, others for every batch."""

import dataclasses

import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from retrieval.towers.crops import QueryCrops, make_crops
from tests.retrieval.towers.small_pairs import made_up_records, tiny_job, write_pairs

CROPS = QueryCrops(document_frame=(2, 1), opening=(1, 7), closing=(9,), max_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(item in rest for item in part)


def test_a_crop_is_a_span_of_the_text_with_some_tokens_dropped():
    document = np.array([1, 5, *range(100, 160), 9], np.int32)
    rng = np.random.default_rng(0)
    crops = [CROPS.crop(document, rng) for _ in range(400)]
    for crop in crops:
        assert crop.dtype == np.int32
        assert crop[:2].tolist() == [1, 7]
        assert crop[-1] == 9
        inner = crop[2:-1].tolist()
        assert inner == sorted(set(inner))
        assert {*inner} <= {*range(100, 160)}
        assert 1 <= len(inner) <= 8
        assert inner[-1] - inner[0] < 8
    inners = [crop[2:-1] for crop in crops]
    assert {len(inner) for inner in inners} >= {2, 4, 6, 8}
    assert min(inner[0] for inner in inners) == 100
    assert max(inner[-1] for inner in inners) == 159
    gaps = [inner[-1] - inner[0] + 1 - len(inner) for inner in inners]
    assert 0.1 < np.mean(gaps) / np.mean([len(inner) for inner in inners]) < 0.3


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_document_shorter_than_a_crop_gives_what_it_has(length):
    document = np.array([1, 5, *range(100, 100 + length), 9], np.int32)
    for seed in range(20):
        inner = CROPS.crop(document, np.random.default_rng(seed))[2:-1].tolist()
        assert 1 <= len(inner) <= length
        assert is_subsequence(inner, range(100, 100 + length))


def test_a_document_without_text_is_not_cropped():
    assert not CROPS.has_text([1, 5, 9])
    assert CROPS.has_text([1, 5, 100, 9])


def test_prefixes_of_documents_are_left_out_and_those_of_queries_put_before(folder):
    job = tiny_job(folder)
    start = job.objective()
    query = dataclasses.replace(start.towers.query, prefix="ba be ")
    document = dataclasses.replace(start.towers.document, prefix="za ze ")
    crops = make_crops(start.tokenizer, query, document)
    text = start.tokenizer.encode_batch(["za ze kolupa"], 32).ids[0]
    found = crops.crop(text, np.random.default_rng(0))
    only_text = start.tokenizer.encode_batch(["kolupa"], 32).ids[0][1:-1]
    before = start.tokenizer.encode_batch(["ba be"], 32).ids[0][:-1]
    assert found[: len(before)].tolist() == before.tolist()
    assert is_subsequence(found[len(before) : -1].tolist(), only_text.tolist())


def test_a_prefix_that_fills_a_query_is_refused(folder):
    start = tiny_job(folder).objective()
    query = dataclasses.replace(start.towers.query, prefix="ba be bi bo bu da de di do du fa fe fi", max_length=8)
    with pytest.raises(UsageError, match=r"fill all 8 tokens of a query; use longer"):
        make_crops(start.tokenizer, query, start.towers.document)


def test_texts_without_special_tokens_are_cropped_too(folder):
    start = tiny_job(folder).objective()
    tokenizer = Tokenizer.train_bpe(["some words to learn from, some more words"] * 3, 300)
    crops = make_crops(tokenizer, start.towers.query, start.towers.document)
    text = tokenizer.encode_batch(["some more words"], 32).ids[0]
    assert (crops.opening, crops.closing, crops.document_frame) == ((), (), (0, 0))
    assert is_subsequence(crops.crop(text, np.random.default_rng(0)).tolist(), text.tolist())


def test_an_epoch_holds_every_pair_once_and_crops_of_every_passage(folder):
    objective = tiny_job(folder, data={"crops_per_document": 2}, training={"global_batch_size": 1}).objective()
    docs, _, qrels = made_up_records()
    num_pairs = sum(relevance > 0 for judged in qrels["train"].values() for relevance in judged.values())
    num_batches = objective.pairs.schedule.num_batches_per_epoch
    assert num_batches == num_pairs + 2 * len(docs)
    owners = [int(objective.batch(step)["document_ids"][0, 0]) for step in range(num_batches)]
    of_pairs = [int(document) for document in objective.pairs.table.pairs[:, 1]]
    assert sorted(owners) == sorted([*of_pairs, *range(len(docs)), *range(len(docs))])


def test_crops_stand_beside_the_document_they_come_from(folder):
    objective = tiny_job(folder, data={"crops_per_document": 8}).objective()
    queries = {tuple(ids.tolist()) for ids in objective.pairs.queries.rows(np.arange(len(objective.pairs.queries)))}
    num_crops = 0
    for step in range(6):
        batch = objective.batch(step)
        for row, kept in enumerate(batch["query_mask"]):
            query = batch["query_tokens"][row][kept]
            if tuple(query.tolist()) in queries:
                continue
            num_crops += 1
            document = batch["document_tokens"][row, 0][batch["document_mask"][row, 0]]
            assert is_subsequence(query.tolist(), document.tolist())
            assert batch["known_positives"][row, 0] == batch["document_ids"][row, 0]
            assert (batch["known_positives"][row, 1:] == -1).all()
    assert num_crops > 40


def test_crops_are_a_pure_function_of_step_and_seed_and_never_come_twice(folder):
    job = tiny_job(folder, data={"crops_per_document": 1})
    first, again = job.objective(), job.objective()
    for step in (9, 2):
        for name, leaf in first.batch(step).items():
            np.testing.assert_array_equal(leaf, again.batch(step)[name])
    per_epoch = first.pairs.schedule.num_batches_per_epoch
    crops = [
        {
            (int(document), tuple(query[kept].tolist()))
            for batch in map(first.batch, range(epoch * per_epoch, (epoch + 1) * per_epoch))
            for query, kept, document in zip(
                batch["query_tokens"], batch["query_mask"], batch["document_ids"][:, 0], strict=True
            )
        }
        for epoch in (0, 1)
    ]
    labelled = {
        (int(document), tuple(first.pairs.queries.rows([query])[0].tolist()))
        for query, document in first.pairs.table.pairs
    }
    assert len(crops[0] - labelled) > 60
    assert len((crops[0] & crops[1]) - labelled) < 10
