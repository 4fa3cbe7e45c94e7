"""TREC runs and judgements: round trips, order, and refusals with file and line."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError
from retrieval.formats.trec import ranked, read_qrels, read_run, write_qrels, write_run

words = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=5)
runs = st.dictionaries(words, st.dictionaries(words, st.floats(allow_nan=False, allow_infinity=False), min_size=1))
qrels = st.dictionaries(words, st.dictionaries(words, st.integers(-5, 5), min_size=1))


@settings(deadline=None, max_examples=50)
@given(run=runs, suffix=st.sampled_from(["", ".gz", ".zst"]))
def test_a_run_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, run: dict, suffix: str) -> None:
    path = tmp_path_factory.mktemp("run") / f"run{suffix}"
    write_run(path, run, "tag")
    read = read_run(path)
    assert read == run
    assert [list(scores) for scores in read.values()] == [[d for d, _ in ranked(s)] for s in run.values()]


@settings(deadline=None, max_examples=30)
@given(judgements=qrels)
def test_judgements_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, judgements: dict) -> None:
    path = tmp_path_factory.mktemp("qrels") / "qrels"
    write_qrels(path, judgements)
    assert read_qrels(path) == judgements


def test_the_lines_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q2": {"a": 0.1, "b": 2.0, "c": 2.0}, "q1": {"a": -1}}, "bm25")
    assert (tmp_path / "run").read_text().splitlines() == [
        "q2 Q0 c 1 2.0 bm25",
        "q2 Q0 b 2 2.0 bm25",
        "q2 Q0 a 3 0.1 bm25",
        "q1 Q0 a 1 -1.0 bm25",
    ]


def test_order_and_ranks_of_lines_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 a 9 1.5 t\nr\tQ0  b 1 2 t\nq Q0 c 1 -3e-2 t\n")
    assert read_run(tmp_path / "run") == {"q": {"a": 1.5, "c": -0.03}, "r": {"b": 2.0}}


def test_ranked_ties_what_a_float32_cannot_tell() -> None:
    assert ranked({"a": 1.0 + 1e-9, "b": 1.0}) == [("b", 1.0), ("a", 1.0 + 1e-9)]
    assert ranked({"a": 1.0 + 1e-6, "b": 1.0}) == [("a", 1.0 + 1e-6), ("b", 1.0)]
    assert ranked({"a": 1e300, "b": 1e299}) == [("b", 1e299), ("a", 1e300)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 a 1 t", r"run:2: got 5 columns, expected 6"),
        ("q Q0 a 1 1.0 t x", r"run:2: got 7 columns"),
        ("q Q0 a 1 nan t", r"run:2: score 'nan' is not finite"),
        ("q Q0 a 1 -inf t", r"run:2: score '-inf' is not finite"),
        ("q Q0 a 1 high t", r"run:2: score 'high' is no number"),
        ("q Q0 first 1 1.0 t", r"run:2: document 'first' is given twice for query 'q'"),
    ],
)
def test_refuses_lines_of_a_run(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run").write_text(f"q Q0 first 1 1.0 t\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q 0 a", r"qrels:2: got 3 columns, expected 4"),
        ("q 0 a 1.5", r"qrels:2: relevance '1.5' is no whole number"),
        ("q 0 a 1_0", r"qrels:2: relevance '1_0' is no whole number"),
        ("q 0 a 1" + "0" * 400, r"qrels:2: relevance '10+' is no whole number"),
        ("q 0 first 0", r"qrels:2: document 'first' is judged twice for query 'q'"),
    ],
)
def test_refuses_lines_of_judgements(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "qrels").write_text(f"q 0 first 1\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_qrels(tmp_path / "qrels")


@pytest.mark.parametrize(
    ("run", "tag"),
    [
        ({"q 1": {"a": 1.0}}, "t"),
        ({"q": {"a b": 1.0}}, "t"),
        ({"q": {"": 1.0}}, "t"),
        ({"q": {"a": math.nan}}, "t"),
        ({"q": {"a": math.inf}}, "t"),
        ({"q": {"a": 1.0}}, "my run"),
    ],
)
def test_refuses_to_write_what_it_could_not_read(tmp_path: Path, run: dict, tag: str) -> None:
    with pytest.raises(DataError):
        write_run(tmp_path / "run", run, tag)
    assert list(tmp_path.iterdir()) == []
