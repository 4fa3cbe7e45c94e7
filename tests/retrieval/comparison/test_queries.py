"""Two runs compared: figures and ranks against plain ones written here, and what is refused."""

import pytest

from jaxscale.errors import DataError, UsageError
from retrieval.comparison.queries import compare_runs
from retrieval.evaluate import evaluate, paired_randomization
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.records import Doc, Query

DOCS = [Doc(f"d{i}", f"title {i}", f"text {i}") for i in range(8)]
QUERIES = [Query(f"q{i}", f"question {i}") for i in range(5)]
QRELS = {
    "q0": {"d0": 1, "d1": 2},
    "q1": {"d2": 1, "d7": 0},
    "q2": {"d3": 1},
    "q3": {"d4": 1},
    "q4": {"d5": 0},
}
A = {
    "q0": {"d1": 3.0, "d5": 2.0, "d0": 1.0},
    "q1": {"d2": 1.0, "d3": 0.5},
    "q2": {"d1": 2.0, "d3": 1.0},
    "q3": {"d4": 1.0},
    "stray": {"d6": 1.0},
}
B = {
    "q0": {"d1": 3.0, "d0": 2.0},
    "q1": {"d3": 1.0, "d7": 0.9, "d2": 0.5},
    "q2": {"d3": 1.0},
    "q4": {"d5": 1.0},
}


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "beir", DOCS, QUERIES, {"test": QRELS})


def compared(folder, a=A, b=B, **settings):
    return compare_runs((a, b), ("a", "b"), folder, **{"split": "test", "measure": "RR@10", "num_shown": 2} | settings)


def test_means_difference_and_p_are_those_of_eval(folder):
    comparison = compared(folder, measure="ndcg@10")
    a, b = (evaluate(run, QRELS, ["nDCG@10"]) for run in (A, B))
    assert comparison.measure == "nDCG@10"
    assert (comparison.a, comparison.b) == (a.interval("nDCG@10"), b.interval("nDCG@10"))
    assert comparison.difference.mean == pytest.approx(b.mean("nDCG@10") - a.mean("nDCG@10"))
    assert comparison.p == paired_randomization(b.values("nDCG@10"), a.values("nDCG@10"))


def test_every_judged_query_is_won_lost_or_equal(folder):
    comparison = compared(folder)
    # By reciprocal rank: q2 1/2 -> 1; q1 1 -> 1/3, q3 1 -> 0; q0 both 1, q4 has nothing relevant.
    assert [(q.query_id, q.difference) for q in comparison.won] == [("q2", 0.5)]
    assert [q.query_id for q in comparison.lost] == ["q3", "q1"]
    assert [q.query_id for q in comparison.equal] == ["q0", "q4"]
    assert [q.query_id for q in comparison.queries] == ["q2", "q0", "q4", "q1", "q3"]


def test_a_query_has_its_text_first_documents_and_the_ranks_of_the_relevant_ones(folder):
    by_id = {query.query_id: query for query in compared(folder).queries}
    q0 = by_id["q0"]
    assert (q0.text, q0.a.doc_ids, q0.b.doc_ids) == ("question 0", ("d1", "d5"), ("d1", "d0"))
    assert q0.relevant == (("d1", 1, 1), ("d0", 3, 2))
    assert by_id["q1"].relevant == (("d2", 1, 3),)
    assert by_id["q3"].relevant == (("d4", 1, None),)
    assert (by_id["q3"].a.missing, by_id["q3"].b.missing, by_id["q3"].b.doc_ids) == (False, True, ())
    assert by_id["q4"].relevant == ()


def test_the_documents_are_those_shown_and_those_relevant(folder):
    comparison = compared(folder, num_shown=1)
    assert comparison.docs == {doc.id: doc for doc in DOCS if doc.id in ("d0", "d1", "d2", "d3", "d4", "d5")}


def test_a_run_with_itself_wins_and_loses_nothing(folder):
    comparison = compared(folder, b=A)
    assert (comparison.won, comparison.lost, comparison.p) == ((), (), 1.0)


def test_ranks_are_trec_evals(folder):
    """By the score as a float32, the greater id first: the order in which the measure counts."""
    (query,) = compared(folder, {"q2": {"d3": 1.0, "d4": 1.0 + 1e-9}}, {"q2": {"d3": 1.0}}).won
    assert query.relevant == (("d3", 2, 1),)
    assert query.a.value == 0.5


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"b": {"other": {"d1": 1.0}}}, DataError, "not one of the 5 queries .* is in both runs; a has 5 queries, b 1"),
        ({"b": {"q3": {"d4": 1.0}}, "a": {"q2": {"d4": 1.0}}}, DataError, "is in both runs"),
        (
            {"b": {"q0": {"x1": 1.0, "x2": 0.5}}},
            DataError,
            "b: 2 documents of the run are not in the corpus of .* 'x1'",
        ),
        ({"a": A | {"stray": {"x": 1.0}}}, DataError, "a: 1 documents of the run are not in the corpus"),
        ({"split": "dev"}, DataError, "has no split 'dev'"),
        ({"num_shown": 0}, UsageError, "num_shown=0"),
        ({"measure": "R"}, UsageError, "needs a cutoff"),
    ],
)
def test_what_can_not_be_compared_is_refused(folder, settings, error, message):
    with pytest.raises(error, match=message):
        compared(folder, **settings)


def test_judgements_of_unknown_queries_and_documents_are_kept(tmp_path):
    write_beir(tmp_path / "beir", DOCS, QUERIES, {"test": {"q0": {"d1": 1}}})
    shown = tmp_path / "plain"
    shown.mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (shown / name).write_bytes((tmp_path / "beir" / name).read_bytes())
    (shown / "qrels").mkdir()
    (shown / "qrels" / "test.tsv").write_text("q0\tgone\t1\nnobody\td1\t1\n")
    comparison = compared(BeirFolder.open(shown), {"q0": {"d1": 1.0}}, {"q0": {"d2": 1.0}})
    by_id = {query.query_id: query for query in comparison.queries}
    assert by_id["q0"].relevant == (("gone", None, None),)
    assert "gone" not in comparison.docs
    assert (by_id["nobody"].text, by_id["nobody"].a.missing) == ("", True)
