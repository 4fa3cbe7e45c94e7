"""The page of two runs compared: every query is there, and what a passage says is shown and not run."""

from jaxscale.observe.report import render
from retrieval.comparison.page import comparison_report
from retrieval.comparison.queries import compare_runs
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.records import Doc, Query
from tests.jaxscale.observe.test_report import Page
from tests.retrieval.comparison.test_queries import DOCS, QRELS, QUERIES, A, B

HOSTILE = Doc("d3", "<b>title", '<script>alert("passage")</script>')


def page_of(path):
    docs = [HOSTILE if doc.id == "d3" else doc for doc in DOCS]
    folder = write_beir(path, docs, [*QUERIES[:2], Query("q2", "<i>why"), *QUERIES[3:]], {"test": QRELS})
    comparison = compare_runs((A, B), ("one", "two"), folder, split="test", measure="RR@10", num_shown=2)
    return Page(render(comparison_report(comparison)))


def test_every_judged_query_can_be_opened_under_what_became_of_it(tmp_path):
    page = page_of(tmp_path / "beir")
    assert len(page.all("details")) == len(QRELS)
    assert [attrs["href"] for attrs in page.all("a")] == [f"#section-{number}" for number in range(1, 6)]
    assert "1 won, 2 lost, 2 equal" in page.text
    assert "RR@10 of one" in page.text
    assert "one: rank 2two: rank 1" in page.text
    assert "The run does not have this query" in page.text


def test_what_passages_and_queries_say_is_text(tmp_path):
    page = page_of(tmp_path / "beir")
    assert not page.all("script")
    assert not page.all("b")
    assert not page.all("i")
    for shown in (HOSTILE.title, HOSTILE.text, "<i>why"):
        assert shown in page.text


def test_a_relevant_document_that_is_not_in_the_corpus_is_named(tmp_path):
    write_beir(tmp_path / "beir", DOCS, QUERIES, {"test": QRELS})
    plain = tmp_path / "plain"
    (plain / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (plain / name).write_bytes((tmp_path / "beir" / name).read_bytes())
    (plain / "qrels" / "test.tsv").write_text("q0\tgone\t1\n")
    folder = BeirFolder.open(plain)
    comparison = compare_runs((A, A), ("a", "b"), folder, split="test", measure="RR", num_shown=1)
    assert "not in the corpus: gone" in Page(render(comparison_report(comparison))).text
