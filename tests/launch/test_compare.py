"""`jaxscale compare`: what it prints and writes, and that a refusal writes nothing."""

import json

import pytest

from launch.cli import main
from retrieval.formats.beir import write_beir
from retrieval.formats.trec import write_run
from tests.jaxscale.observe.test_report import Page
from tests.retrieval.comparison.test_queries import DOCS, QRELS, QUERIES, A, B


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_beir(tmp_path / "beir", DOCS, QUERIES, {"test": QRELS})
    write_run("a.trec", A, "a")
    write_run("b.trec", B, "b")
    return tmp_path


def compare(*words):
    return main(["compare", *words, "--data", "beir", "--out", "page.html", "--json", "report.json"])


def test_two_runs_on_one_page(home, capsys):
    assert compare("a.trec", "b.trec", "--measure", "rr@10") == 0
    shown = capsys.readouterr().out
    assert "of 5 queries b wins 1 and loses 2; 2 are equal" in shown
    assert "most won  +0.5000  q2  question 2" in shown
    assert "most lost  -1.0000  q3  question 3" in shown
    report = json.loads((home / "report.json").read_text())
    assert (report["num_won"], report["num_lost"], report["num_equal"]) == (1, 2, 2)
    assert report["measure"] == "RR@10"
    assert report["queries"]["q2"] == [0.5, 1.0]
    assert report["difference"]["mean"] == pytest.approx(report["means"][1]["mean"] - report["means"][0]["mean"])
    page = Page((home / "page.html").read_text())
    assert len(page.all("details")) == 5
    assert "a → b" in page.text


def test_an_old_page_is_replaced_only_by_a_new_one(home, capsys):
    (home / "page.html").write_text("old")
    (home / "other.trec").write_text("elsewhere Q0 d1 1 1.0 x\n")
    assert compare("a.trec", "other.trec") == 3
    assert (home / "page.html").read_text() == "old"
    assert compare("a.trec", "b.trec") == 0
    assert (home / "page.html").read_text() != "old"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("elsewhere Q0 d1 1 1.0 x", "is in both runs"),
        ("q0 Q0 unknown 1 1.0 x", "other: 1 documents of the run are not in the corpus"),
        ("q0 Q0 d1 1 high x", "other.trec:1: score 'high' is no number"),
        ("q0 Q0 d1 1.0 x", "other.trec:1: got 5 columns"),
    ],
)
def test_what_can_not_be_compared_ends_with_3_and_writes_nothing(home, capsys, line, message):
    (home / "other.trec").write_text(line + "\n")
    assert compare("a.trec", "other.trec") == 3
    assert message in capsys.readouterr().err
    assert not (home / "page.html").exists()
