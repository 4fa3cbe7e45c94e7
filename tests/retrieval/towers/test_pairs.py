"""Texts and judgements of a BEIR folder, and what is refused of them and of what a job says."""

import json

import pytest

from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import write_beir
from retrieval.records import Doc, Query
from retrieval.towers.pairs import PairData, read_source


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
        ("q1\td1\t1\nq2\td1\t0", "1 of 2 queries, such as 'q2', have no relevant document"),
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
        ({"duplicate_jaccard": 0.3}, "duplicate_jaccard=0.3 must be between 0.5 and 1"),
        ({"source_separator": "-", "clusters": "file.jsonl"}, "give one of them"),
    ],
)
def test_settings_out_of_range_are_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        PairData(**fields)
