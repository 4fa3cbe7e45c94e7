"""The batches of a distillation: functions of their number, each query once, of like lengths, with its positive."""

import dataclasses

import numpy as np
import pytest

from jaxscale.data.batches import BatchSchedule
from jaxscale.errors import DataError
from jaxscale.train.batch_shapes import bucket_of
from retrieval.towers.distillation.batches import QueryBatches, make_positives
from retrieval.towers.tokens import TokenTable

SIZE, NUM = 8, 8 * 8 * 2
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 25, NUM)
ROWS = [np.full(length, 3 + i, np.int32) for i, length in enumerate(LENGTHS)]
TEACHER = RNG.normal(size=(NUM, 4)).astype(np.float32)
RELEVANT = [(f"d{i % 5}",) if i % 3 else (f"d{i % 5}", f"d{i % 5 + 5}") for i in range(NUM)]
DOCUMENTS = RNG.normal(size=(10, 4)).astype(np.float32)


def batches(seed=0, positives=True):
    return QueryBatches(
        queries=TokenTable.of(ROWS),
        teacher_vectors=TEACHER,
        positives=make_positives(RELEVANT, [f"d{i}" for i in range(10)], DOCUMENTS) if positives else None,
        schedule=BatchSchedule(num_examples=NUM, global_batch_size=SIZE, seed=seed),
        query_buckets=(8, 16, 24),
        pad_id=0,
    )


def test_a_batch_depends_on_its_number_alone():
    forwards = [batches().batch(number) for number in range(20)]
    ours = batches()
    for number in reversed(range(20)):
        for name, leaf in ours.batch(number).items():
            np.testing.assert_array_equal(leaf, forwards[number][name])
    assert (batches(seed=1).examples(0) != batches().examples(0)).any()


@pytest.mark.parametrize("positives", [True, False])
def test_rows_belong_together_and_shapes_are_those_that_were_named(positives):
    ours = batches(positives=positives)
    known = {bucket_of(shapes) for shapes in ours.batch_shapes()}
    for number in range(16):
        batch, examples = ours.batch(number), ours.examples(number)
        assert bucket_of(batch) in known
        for row, example in enumerate(examples):
            np.testing.assert_array_equal(batch["query_tokens"][row][batch["query_mask"][row]], ROWS[example])
        np.testing.assert_array_equal(batch["teacher_vectors"], TEACHER[examples])


def test_an_epoch_has_each_query_once_and_is_padded_less_than_in_the_order_of_the_schedule():
    ours, num_batches = batches(), NUM // SIZE
    examples = [ours.examples(number) for number in range(num_batches)]
    assert sorted(np.concatenate(examples).tolist()) == list(range(NUM))
    widths = [ours.batch(number)["query_tokens"].shape[1] for number in range(num_batches)]
    unsorted = [LENGTHS[ours.schedule.indices(number)].max() for number in range(num_batches)]
    assert sum(widths) < 0.85 * sum(-(-int(length) // 8) * 8 for length in unsorted)
    # Lengths don't rise with the steps.
    assert widths[:8] != sorted(widths[:8])


def test_each_query_comes_with_one_of_its_relevant_documents():
    ours, seen = batches(), {}
    for number in range(64):
        batch = ours.batch(number)
        for row, example in enumerate(ours.examples(number)):
            own = int(batch["document_ids"][row, 0])
            assert f"d{own}" in RELEVANT[example]
            assert own in batch["known_positives"][row]
            np.testing.assert_array_equal(batch["document_vectors"][row, 0], DOCUMENTS[own])
            seen.setdefault(example, set()).add(own)
    # Of two relevant documents each has its turn.
    assert any(len(documents) == 2 for documents in seen.values())


def test_a_relevant_document_without_a_vector_is_refused():
    with pytest.raises(DataError, match="has no row of the relevant document 'x'"):
        make_positives([("d0",), ("x",)], ["d0"], DOCUMENTS[:1])


@pytest.mark.parametrize(("num", "size"), [(12 * 8, 8), (8, 8), (7 * 8 + 5, 8), (20, 1)])
def test_no_query_stands_twice_in_a_batch_or_an_epoch_where_eight_batches_are_no_whole_epoch(num, size):
    ours = dataclasses.replace(batches(), schedule=BatchSchedule(num_examples=num, global_batch_size=size, seed=0))
    per_epoch = num // size
    for epoch in range(5):
        numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        found = np.concatenate([ours.examples(number) for number in numbers])
        scheduled = np.concatenate([ours.schedule.indices(number) for number in numbers])
        assert sorted(found.tolist()) == sorted(scheduled.tolist())
        assert len(set(found.tolist())) == per_epoch * size
