"""Contrastive entropy beside its definition, and the choice of its queries and negatives."""

import math

import numpy as np
import pytest

from jaxscale.errors import DataError
from retrieval.scaling.contrastive_entropy import contrastive_entropy, make_entropy_set
from retrieval.towers.pairs import read_source
from tests.retrieval.towers.small_pairs import write_pairs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_source(write_pairs(tmp_path_factory.mktemp("beir") / "b"), "train", "dev")


def test_it_is_the_mean_of_the_negative_log_softmax():
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(n, 6)).astype(np.float32) for n in (3, 9))
    positives, negatives = [[0], [1, 2], [3]], np.array([[4, 5, 6], [6, 7, 8], [4, 6, 8]])
    expected = []
    for q, own, others in zip(queries, positives, negatives, strict=True):
        score = [float(np.dot(q.astype(np.float64), d.astype(np.float64))) / 0.5 for d in documents]
        rest = sum(math.exp(score[row]) for row in others)
        expected.append(np.mean([-math.log(math.exp(score[row]) / (math.exp(score[row]) + rest)) for row in own]))
    got = contrastive_entropy(queries, documents, positives, negatives, temperature=0.5)
    assert got == pytest.approx(np.mean(expected), rel=1e-9)


def test_scores_that_would_overflow_do_not():
    vectors = np.array([[100.0], [-100.0]], np.float32)
    far = contrastive_entropy(vectors[:1], vectors, [[1]], np.array([[0]]), temperature=0.01)
    assert far == pytest.approx(2e6)


def test_towers_that_tell_nothing_have_the_entropy_of_a_guess(source):
    chosen = make_entropy_set(source, num_queries=10, num_negatives=15, num_pool_documents=50)
    queries, documents = (np.zeros((len(texts), 4), np.float32) for texts in (chosen.queries, chosen.documents))
    got = contrastive_entropy(queries, documents, chosen.positives, chosen.negatives, temperature=0.1)
    assert got == pytest.approx(math.log(16))


def test_negatives_are_different_documents_that_are_not_relevant(source):
    chosen = make_entropy_set(source, num_queries=1000, num_negatives=30, num_pool_documents=60)
    texts = {source.queries[query_id].text: judged for query_id, judged in source.dev_qrels.items()}
    assert sorted(chosen.queries) == sorted(texts)
    for text, own, others in zip(chosen.queries, chosen.positives, chosen.negatives, strict=True):
        assert {chosen.documents[row] for row in own} == {
            source.docs[source.doc_rows[doc_id]].passage for doc_id in texts[text]
        }
        assert len(set(others)) == 30
        assert not set(own) & set(others)
        assert max(others) < 60


def test_it_is_the_same_again_and_a_query_keeps_its_negatives_beside_others(source):
    few, many = (make_entropy_set(source, num_queries=n, num_negatives=8, num_pool_documents=40) for n in (4, 12))
    assert many.queries[:4] == few.queries
    for row in range(4):
        assert [few.documents[i] for i in few.negatives[row]] == [many.documents[i] for i in many.negatives[row]]


def test_too_small_a_pool_is_refused(source):
    with pytest.raises(DataError, match=r"num_negatives=41, but query .* has (39|40) documents"):
        make_entropy_set(source, num_queries=24, num_negatives=41, num_pool_documents=40)
