"""The queries of a distillation: the split's, sentences of the corpus, dev's, and what is refused."""

import dataclasses

import pytest

from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import write_beir
from retrieval.records import Doc, Query
from retrieval.towers.distillation.data import QueryData, passage_sentences, read_source
from tests.retrieval.towers.small_pairs import made_up_records, write_pairs

ARTICLE = Doc("d", "A title", "The first one is long. Short. The second is here! Is the third here? The fourth ends.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_pairs(tmp_path_factory.mktemp("pairs") / "beir"))


def test_the_queries_are_the_splits_with_their_relevant_documents(folder):
    source = read_source(QueryData(folder=folder))
    _, queries, qrels = made_up_records()
    assert [query.id for query in source.queries] == list(qrels["train"])
    relevant = dict(zip((query.id for query in source.queries), source.relevant, strict=True))
    assert relevant["q1-0"] == ("d1", "d2")
    assert {query.id for query in source.dev} == set(qrels["dev"])
    assert len(source.all_queries) == len(queries)


def test_sentences_are_chosen_by_what_they_say():
    sentences = [query.text for _, query in passage_sentences([ARTICLE], 9)]
    assert sentences == [
        *("The first one is long.", "The second is here!", "Is the third here?", "The fourth ends."),
    ]
    two = [query.text for _, query in passage_sentences([ARTICLE], 2)]
    turned = dataclasses.replace(ARTICLE, text=" ".join(reversed(sentences)))
    assert len(two) == 2
    assert {query.text for _, query in passage_sentences([turned], 2)} == set(two)


def test_sentences_come_with_their_passage_as_the_relevant_one(folder):
    source = read_source(QueryData(folder=folder, sentences_per_passage=1))
    docs = {doc.id: doc for doc in made_up_records()[0]}
    sentences = [(q, r) for q, r in zip(source.queries, source.relevant, strict=True) if "#" in q.id]
    assert len(sentences) == len(docs)
    for query, (doc_id,) in sentences:
        assert query.text in docs[doc_id].text
    assert source.sha256 != read_source(QueryData(folder=folder)).sha256


def test_a_sample_of_dev_is_always_the_same(folder):
    few = read_source(QueryData(folder=folder, num_dev_queries=5))
    assert [query.id for query in few.dev] == [q.id for q in read_source(QueryData(folder=folder)).dev][:5]
    assert few.dev_qrels.keys() == {query.id for query in few.dev}


def test_the_hash_knows_texts_and_judgements(tmp_path):
    docs, queries, qrels = (
        [Doc("d", "", "a b c")],
        [Query("q", "a")],
        {"train": {"q": {"d": 1}}, "dev": {"q": {"d": 1}}},
    )

    def sha(name, docs, queries, qrels):
        return read_source(QueryData(folder=str(write_beir(tmp_path / name, docs, queries, qrels).path))).sha256

    first = sha("1", docs, queries, qrels)
    assert sha("2", docs, [Query("q", "b")], qrels) != first
    assert sha("3", docs, queries, qrels | {"dev": {"q": {"d": 2}}}) != first
    assert sha("4", [Doc("d", "", "other")], queries, qrels) == first  # no sentence of it is asked for


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"query_buckets": ()}, "must be lengths in tokens"),
        ({"query_buckets": (16, 8)}, "each above the one before"),
        ({"sentences_per_passage": -1}, "sentences_per_passage=-1 must be at least 0"),
        ({"num_dev_queries": 0}, "num_dev_queries=0 must be at least 1"),
    ],
)
def test_fields_that_say_nothing_are_refused(fields, said):
    with pytest.raises(UsageError) as refusal:
        QueryData(**fields)
    assert said in str(refusal.value)


def test_splits_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="has no split 'nothing'"):
        read_source(QueryData(folder=folder, split="nothing"))
    beir = write_beir(tmp_path / "beir", [Doc("d", "", "a b c")], [Query("q", "a")], {"train": {}, "dev": {}}).path
    with pytest.raises(DataError, match=r"train\.tsv: judges no query"):
        read_source(QueryData(folder=str(beir)))
    taken = write_beir(
        tmp_path / "taken",
        [Doc("d", "", "a b c")],
        [Query("d#sentence0", "a")],
        {"train": {"d#sentence0": {"d": 1}}, "dev": {"d#sentence0": {"d": 1}}},
    ).path
    with pytest.raises(DataError, match="has the id that a sentence of 'd' is given"):
        read_source(QueryData(folder=str(taken), sentences_per_passage=1))
