"""Pairs of a BEIR folder: who belongs to whom, and what is refused."""

import json

import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import write_beir
from retrieval.records import Doc, Query
from retrieval.towers.in_batch import NO_DOCUMENT
from retrieval.towers.pairs import PairData, make_table, read_source
from tests.retrieval.towers.small_pairs import write_pairs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return read_source(write_pairs(tmp_path_factory.mktemp("pairs") / "beir"), "train", "dev")


def test_every_relevant_pair_of_the_split_is_there_once(source):
    table = make_table(source, None, 0)
    got = {(table.query_ids[query], source.docs[doc].id) for query, doc in table.pairs}
    expected = {(query, doc) for query, judged in source.qrels.items() for doc, rel in judged.items() if rel > 0}
    assert len(table.pairs) == len(got)
    assert got == expected
    assert ("q1-0", "d2") in got
    assert not {query for query, _ in got} & source.dev_qrels.keys()


def test_known_positives_hold_all_relevant_documents_and_padding(source):
    table = make_table(source, None, 0)
    assert table.known_positives.shape[1] == 2
    for query_id, known in zip(table.query_ids, table.known_positives, strict=True):
        assert {source.docs[row].id for row in known if row != NO_DOCUMENT} == set(source.qrels[query_id])


def negatives_file(path, source, **changes):
    """Two hard negatives for each query; `changes` replace those of one."""
    lists = {query_id: ["d5", "d6"] for query_id in source.qrels} | changes
    path.write_text("".join(json.dumps({"query_id": q, "doc_ids": ids}) + "\n" for q, ids in lists.items()))
    return path


def test_hard_negatives_are_chosen_by_seed_and_step_without_repeats(source, tmp_path):
    path = negatives_file(tmp_path / "negatives.jsonl", source, **{"q1-0": ["d7", "d8", "d9", "d10"]})
    table = make_table(source, path, 2)
    row = table.query_ids.index("q1-0")
    rows = np.full(16, row)
    chosen = table.choose_hard_negatives(rows, 2, (0, 5))
    assert chosen.shape == (16, 2)
    assert {source.docs[doc].id for doc in chosen.ravel()} == {"d7", "d8", "d9", "d10"}
    assert all(len(set(pair)) == 2 for pair in chosen.tolist())
    np.testing.assert_array_equal(chosen, table.choose_hard_negatives(rows, 2, (0, 5)))
    assert not np.array_equal(chosen, table.choose_hard_negatives(rows, 2, (0, 6)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q1-0": ["d7", "elsewhere"]}, "document 'elsewhere' is not in corpus.jsonl"),
        ({"q1-0": ["d7", "d7"]}, "query 'q1-0' has 1 different hard negatives, expected at least num_hard_negatives=2"),
        ({"stranger": ["d7", "d8"]}, "query 'stranger' is not a judged one"),
    ],
)
def test_a_negatives_file_of_another_corpus_is_refused(source, tmp_path, changes, said):
    path = negatives_file(tmp_path / "negatives.jsonl", source, **changes)
    with pytest.raises(DataError, match=said):
        make_table(source, path, 2)


@pytest.mark.parametrize("line", ["{", '["q", "d"]', '{"query_id": "q1-0"}', '{"query_id": "q1-0", "doc_ids": 3}'])
def test_a_malformed_line_is_refused_with_its_number(source, tmp_path, line):
    path = tmp_path / "negatives.jsonl"
    path.write_text('{"query_id": "q1-1", "doc_ids": ["d7", "d8"]}\n' + line + "\n")
    with pytest.raises(DataError, match=r"negatives\.jsonl:2"):
        make_table(source, path, 1)


def test_a_missing_negatives_file_is_refused(source, tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        make_table(source, tmp_path / "nothing.jsonl", 1)


def test_judgements_must_name_what_is_there(tmp_path):
    docs, queries = [Doc("d1", "", "text")], [Query("q1", "text")]
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": d.id, "text": d.text}) + "\n" for d in docs))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": q.id, "text": q.text}) + "\n" for q in queries))
    (folder / "qrels" / "dev.tsv").write_text("q1\td1\t1\n")
    for row, said in [
        ("q1\td2\t1", "document 'd2' of query 'q1' is not in corpus.jsonl"),
        ("q2\td1\t1", "query 'q2' is not in queries.jsonl"),
        ("q1\td1\t0", "no query has a relevant document"),
    ]:
        (folder / "qrels" / "train.tsv").write_text(row + "\n")
        with pytest.raises(DataError, match=said):
            read_source(folder, "train", "dev")


def test_the_hash_sees_every_record_and_no_file(tmp_path):
    def digest(name, text="text", relevance=1, **options):
        docs, queries = [Doc("d1", "title", text)], [Query("q1", "asks"), Query("unjudged", "nothing")]
        qrels = {"train": {"q1": {"d1": relevance}}, "dev": {"q1": {"d1": 1}}}
        return read_source(write_beir(tmp_path / name, docs, queries, qrels, **options).path, "train", "dev").sha256

    same = digest("plain")
    assert digest("compressed", compression=".gz") == same
    assert digest("other text", text="text!") != same
    assert digest("other relevance", relevance=2) != same


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"query_buckets": ()}, "query_buckets="),
        ({"document_buckets": (64, 64)}, "document_buckets="),
        ({"document_buckets": (64, 32)}, "document_buckets="),
        ({"num_dev_queries": 0}, "num_dev_queries=0"),
        ({"num_hard_negatives": -1}, "num_hard_negatives=-1"),
        ({"crops_per_document": -1}, "crops_per_document=-1"),
        ({"crops_per_document": 1, "num_hard_negatives": 2, "hard_negatives": "file.jsonl"}, "exclude each other"),
        ({"num_hard_negatives": 2}, "go together"),
        ({"hard_negatives": "file.jsonl"}, "go together"),
    ],
)
def test_settings_out_of_range_are_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        PairData(**fields)
