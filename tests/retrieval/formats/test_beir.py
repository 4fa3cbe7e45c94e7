"""BEIR folders: committed ones and others', every refusal with file and line, the rules for odd content."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.store import commit
from retrieval.formats.beir import BeirFolder, read_qrels, write_beir
from retrieval.formats.text_rule import TextCounts, TextRule
from retrieval.records import Doc, Query
from tests.shared_data import unpack_beir

DOCS = [Doc("d1", "T", "text é"), Doc("d2", "", "a\nb\u2028"), Doc("d 3", "", "")]
QUERIES = [Query("q1", "what?"), Query("q2", "why")]
QRELS = {"train": {"q1": {"d1": 1}}, "test": {"q2": {"d2": 2, "d 3": 0}}}


def plain_folder(path: Path, corpus: str | None = None, queries: str | None = None, qrels: str | None = None) -> Path:
    """A folder as others make it: no manifest."""
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text(corpus or '{"_id": "d1", "title": "T", "text": "x"}\n', encoding="utf-8")
    (path / "queries.jsonl").write_text(queries or '{"_id": "q1", "text": "x", "metadata": {}}\n', encoding="utf-8")
    (path / "qrels" / "test.tsv").write_text(qrels or "query-id\tcorpus-id\tscore\nq1\td1\t1\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_gives_back_what_it_wrote(tmp_path: Path, compression: str) -> None:
    folder = write_beir(tmp_path / "c", DOCS, QUERIES, QRELS, compression=compression)  # type: ignore[arg-type]
    assert (tmp_path / "c" / f"corpus.jsonl{compression}").is_file()
    assert list(folder.docs()) == DOCS
    assert list(folder.queries()) == QUERIES
    assert {split: folder.qrels(split) for split in folder.splits} == QRELS
    assert (folder.num_docs, folder.num_queries) == (3, 2)


texts = st.text(st.characters(), max_size=20)


@settings(deadline=None, max_examples=15)
@given(docs=st.lists(st.tuples(texts, texts), max_size=5))
def test_any_text_comes_back_under_the_rule(tmp_path_factory: pytest.TempPathFactory, docs: list) -> None:
    records = [Doc(str(i), title, text) for i, (title, text) in enumerate(docs)]
    folder = write_beir(tmp_path_factory.mktemp("beir") / "c", records, [], {})
    expected = [Doc(d.id, *TextRule().clean((d.title, d.text), TextCounts())) for d in records]
    assert list(folder.docs()) == expected


def test_what_is_written_is_committed_and_can_be_verified(tmp_path: Path) -> None:
    odd = [*DOCS, Doc("nul", "", "\x00"), Doc("half", "\ud800", "x"), Doc("giant", "", "x" * 50)]
    parents = {"source": "0" * 64}
    write_beir(tmp_path / "c", odd, QUERIES, QRELS, rule=TextRule(max_chars=30), config={"by": "test"}, parents=parents)
    committed = commit.open_committed(tmp_path / "c", format="jaxscale.beir", check="full")
    assert committed.manifest.counts == {
        **{"docs": 6, "docs.num_empty": 1, "docs.num_with_nul": 1},
        **{"docs.num_with_lone_surrogates": 1, "docs.num_cut": 1},
        **{"queries": 2, "queries.num_empty": 0, "queries.num_with_nul": 0},
        **{"queries.num_with_lone_surrogates": 0, "queries.num_cut": 0},
        **{"qrels.train": 1, "qrels.test": 2},
    }
    assert committed.manifest.config == {"by": "test"}
    assert committed.manifest.parents == parents
    by_sizes, full = BeirFolder.open(tmp_path / "c"), BeirFolder.open(tmp_path / "c", check="full")
    assert by_sizes.identity == full.identity == committed.manifest.identity
    assert (by_sizes.verified, full.verified) == (False, True)


def test_the_same_records_give_the_same_identity(tmp_path: Path) -> None:
    first, again = (write_beir(tmp_path / name, DOCS, QUERIES, QRELS) for name in ("a", "b"))
    assert first.identity == again.identity
    assert write_beir(tmp_path / "c", DOCS[:2], QUERIES, {"train": QRELS["train"]}).identity != first.identity


def test_damage_is_found(tmp_path: Path) -> None:
    write_beir(tmp_path / "c", DOCS, QUERIES, QRELS)
    file = tmp_path / "c" / "corpus.jsonl"
    file.write_bytes(file.read_bytes().replace(b"text", b"test", 1))
    with pytest.raises(VerificationError, match=r"corpus\.jsonl"):
        BeirFolder.open(tmp_path / "c", check="full")


def test_a_folder_of_others_is_unverified(tmp_path: Path) -> None:
    folder = BeirFolder.open(plain_folder(tmp_path / "c"), check="full")
    assert folder.identity is None
    assert not folder.verified
    assert list(folder.docs()) == [Doc("d1", "T", "x")]
    assert list(folder.queries()) == [Query("q1", "x")]
    assert folder.splits == ("test",)


def test_a_corpus_alone_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "x", "title": null}\n')
    folder = BeirFolder.open(tmp_path)
    assert list(folder.docs()) == [Doc("1", "", "x")]
    assert folder.splits == ()
    with pytest.raises(DataError, match=r"holds no queries\.jsonl"):
        list(folder.queries())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "d2", "text": "x"', r"corpus\.jsonl:2: not JSON"),
        ("[" * 100_000, r"corpus\.jsonl:2: not JSON"),
        ('["d2"]', r"corpus\.jsonl:2: got a list, expected an object"),
        ('{"text": "x"}', r"corpus\.jsonl:2: has no _id; its fields are text"),
        ('{"_id": "d2", "title": "x"}', r"corpus\.jsonl:2: has no text; its fields are _id, title"),
        ('{"_id": 2, "text": "x"}', r"corpus\.jsonl:2: _id: got 2, expected a string"),
        ('{"_id": "d\\t2", "text": "x"}', r"corpus\.jsonl:2: _id: got 'd\\t2'"),
        ('{"_id": "d2", "text": ["x"]}', r"corpus\.jsonl:2: text: got a list, expected a string"),
        ('{"_id": "d2", "title": 1, "text": "x"}', r"corpus\.jsonl:2: title: got a int"),
        ('\n{"_id": "d1", "text": "x"}', r"corpus\.jsonl:3: _id 'd1' was given before, in line 1"),
    ],
)
def test_refuses_documents(tmp_path: Path, line: str, message: str) -> None:
    folder = BeirFolder.open(plain_folder(tmp_path / "c", corpus=f'{{"_id": "d1", "text": "x"}}\n{line}\n'))
    docs = folder.docs()
    assert next(docs).id == "d1"
    with pytest.raises(DataError, match=message):
        next(docs)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 d1 1", r"test\.tsv:3: got 1 columns, expected 3"),
        ("q1\td1", r"test\.tsv:3: got 2 columns"),
        ("q1\td1\tyes", r"test\.tsv:3: relevance 'yes' is no whole number"),
        ("q1\td\t0", r"test\.tsv:3: document 'd' is judged twice for query 'q1'"),
    ],
)
def test_refuses_judgements(tmp_path: Path, line: str, message: str) -> None:
    path = plain_folder(tmp_path / "c", qrels=f"query-id\tcorpus-id\tscore\nq1\td\t1\n{line}\n")
    with pytest.raises(DataError, match=message):
        BeirFolder.open(path).qrels("test")


def test_a_missing_header_loses_no_judgement(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("q1\td1\t1\nq1\td2\t-1\n")
    assert read_qrels(tmp_path / "x.tsv") == {"q1": {"d1": 1, "d2": -1}}


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no split 'dev'; it has test$"):
        BeirFolder.open(plain_folder(tmp_path / "c")).qrels("dev")


def test_judgements_of_the_unknown_are_kept_and_counted(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\nq1\tgone\t1\nnobody\td1\t1\nnobody\tgone\t1\n"
    folder = BeirFolder.open(plain_folder(tmp_path / "c", qrels=qrels))
    assert folder.qrels("test") == {"q1": {"gone": 1}, "nobody": {"d1": 1, "gone": 1}}
    report = folder.report()
    assert (report.num_unknown_docs, report.num_unknown_queries) == (2, 2)
    assert report.num_qrels == {"test": 3}


def test_the_report_counts_what_the_rule_met(tmp_path: Path) -> None:
    corpus = (
        '{"_id": "1", "text": ""}\n{"_id": "2", "text": "\\ud800\\u0000"}\n{"_id": "3", "text": "\\ud83d\\ude00"}\n'
    )
    report = BeirFolder.open(plain_folder(tmp_path / "c", corpus=corpus)).report()
    assert report.docs == TextCounts(num_records=3, num_empty=1, num_with_nul=1, num_with_lone_surrogates=1)


def test_compressed_and_plain_together_are_refused(tmp_path: Path) -> None:
    path = plain_folder(tmp_path / "c")
    (path / "corpus.jsonl.gz").touch()
    with pytest.raises(DataError, match=r"corpus\.jsonl and corpus\.jsonl\.gz; keep one"):
        BeirFolder.open(path)


@pytest.mark.parametrize(
    ("docs", "queries", "qrels", "message"),
    [
        ([*DOCS, DOCS[0]], QUERIES, {}, "docs: the id 'd1' is given twice"),
        (DOCS, [*QUERIES, QUERIES[1]], {}, "queries: the id 'q2' is given twice"),
        ([Doc("a\tb", "", "x")], QUERIES, {}, "docs: got 'a.tb'"),
        (DOCS, QUERIES, {"test": {"q9": {"d1": 1}}}, "judges the query 'q9'"),
        (DOCS, QUERIES, {"test": {"q1": {"d9": 1}}}, "judges the document 'd9'"),
    ],
)
def test_writes_nothing_that_does_not_hold_together(
    tmp_path: Path, docs: list, queries: list, qrels: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_beir(tmp_path / "c", docs, queries, qrels)
    assert not (tmp_path / "c").exists()


def test_replaces_only_when_told(tmp_path: Path) -> None:
    write_beir(tmp_path / "c", DOCS, QUERIES, QRELS)
    with pytest.raises(UsageError, match="exists already"):
        write_beir(tmp_path / "c", DOCS[:1], [], {})
    assert list(write_beir(tmp_path / "c", DOCS[:1], [], {}, replace=True).docs()) == DOCS[:1]


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_refuses_what_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="no such folder"):
        BeirFolder.open(tmp_path / name)
    with pytest.raises(DataError, match=r"holds no corpus\.jsonl"):
        BeirFolder.open(tmp_path)


def test_reads_a_classic(tmp_path: Path) -> None:
    folder = BeirFolder.open(unpack_beir("cranfield", tmp_path))
    report = folder.report()
    assert (report.docs.num_records, report.docs.num_empty, report.queries.num_records) == (1400, 2, 225)
    assert report.num_unknown_docs == report.num_unknown_queries == 0
    first = json.loads((folder.path / "corpus.jsonl").read_text(encoding="utf-8").split("\n", 1)[0])
    assert next(folder.docs()) == Doc(first["_id"], first["title"], first["text"])
