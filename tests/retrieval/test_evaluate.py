"""Evaluation against pytrec-eval (trec_eval's own code) and against plain statistics written here."""

import itertools
import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError, UsageError
from retrieval.evaluate import (
    Measure,
    bootstrap_interval,
    evaluate,
    macro_interval,
    macro_randomization,
    paired_randomization,
)
from retrieval.formats.trec import ranked

ORACLE = {
    **{f"nDCG@{k}": f"ndcg_cut_{k}" for k in (1, 3, 10)},
    **{f"R@{k}": f"recall_{k}" for k in (1, 5, 100)},
    **{f"P@{k}": f"P_{k}" for k in (1, 5, 10)},
    **{f"MAP@{k}": f"map_cut_{k}" for k in (2, 10)},
    "nDCG": "ndcg",
    "RR": "recip_rank",
    "MAP": "map",
}

# Few documents and few scores, so that ties, unjudged and missing documents are common; ids that sort unlike numbers,
# and beyond ASCII; scores that differ by less than a float32 can tell.
DOC_IDS = ["d1", "d10", "d2", "D2", "é", "東", "a", "zz", "d", "10", "9", "\U0001f600", "\uffee"]
SCORES = [0.0, 1.0, 1.0 + 1e-9, 1.0 + 1e-6, -2.5, 0.1, 16777216.0, 16777217.0, 1e-40, -0.0]
runs = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.dictionaries(st.sampled_from(DOC_IDS), st.sampled_from(SCORES), min_size=1),
    max_size=3,
)
# pytrec-eval writes beyond its memory for a query with negative judgements alone; that case is tested by hand below.
judgements = st.dictionaries(
    st.sampled_from(["q1", "q2", "q4"]),
    st.dictionaries(st.sampled_from(DOC_IDS), st.integers(-2, 4), min_size=1).filter(lambda j: max(j.values()) >= 0),
    min_size=1,
)


def oracle(run: dict, qrels: dict) -> dict[str, dict[str, float]]:
    """Measure -> query -> value by trec_eval, with 0 for a query missing from the run."""
    names = {"ndcg_cut.1,3,10", "recall.1,5,100", "P.1,5,10", "map_cut.2,10", "ndcg", "recip_rank", "map"}
    results = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    return {m: {q: results[q][name] if q in results else 0.0 for q in qrels} for m, name in ORACLE.items()}


def assert_equals_oracle(run: dict, qrels: dict) -> None:
    expected = oracle(run, qrels)
    ours = evaluate(run, qrels, list(ORACLE))
    for measure, by_query in expected.items():
        for query_id, value in zip(ours.query_ids, ours.values(measure), strict=True):
            assert abs(value - by_query[query_id]) < 1e-9, (measure, query_id, run, qrels)
        assert abs(ours.mean(measure) - np.mean(list(by_query.values()))) < 1e-9


@settings(deadline=None, max_examples=300)
@given(run=runs, qrels=judgements)
def test_equals_trec_eval_with_ties_grades_and_gaps(run: dict, qrels: dict) -> None:
    assert_equals_oracle(run, qrels)


def test_equals_trec_eval_on_large_random_runs() -> None:
    generator = np.random.default_rng(0)
    doc_ids = [f"doc{i}" for i in range(2000)]
    run, qrels = {}, {}
    for query in range(60):
        retrieved = generator.choice(2000, size=300, replace=False)
        scores = generator.normal(size=300).round(2 if query % 2 else 9)  # rounded ones tie
        run[f"q{query}"] = {doc_ids[d]: float(s) for d, s in zip(retrieved, scores, strict=True)}
        judged = generator.choice(2000, size=80, replace=False)
        qrels[f"q{query + 3}"] = {
            doc_ids[d]: int(r) for d, r in zip(judged, generator.integers(-1, 4, 80), strict=True)
        }
        qrels[f"q{query + 3}"] |= {
            doc_ids[d]: int(r) for d, r in zip(retrieved[:40], generator.integers(0, 4, 40), strict=True)
        }
    assert_equals_oracle(run, qrels)


@settings(deadline=None, max_examples=100)
@given(run=runs, qrels=judgements, cutoff=st.integers(1, 6))
def test_reciprocal_rank_with_a_cutoff_is_that_of_a_shorter_run(run: dict, qrels: dict, cutoff: int) -> None:
    short = {query_id: dict(ranked(scores)[:cutoff]) for query_id, scores in run.items()}
    ours = evaluate(run, qrels, [f"RR@{cutoff}"])
    expected = oracle(short, qrels)["RR"]
    assert ours.values(f"RR@{cutoff}").tolist() == pytest.approx([expected[q] for q in ours.query_ids], abs=1e-9)


def test_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 1, "c": 0, "d": -1, "e": 1}}
    run = {"q": {"x": 9.0, "b": 8.0, "d": 7.0, "a": 6.0, "c": 5.0}}
    ours = evaluate(run, qrels, ["nDCG@10", "nDCG@3", "RR@10", "RR@1", "P@5", "R@4", "MAP"])
    ideal = 3 + 1 / math.log2(3) + 1 / 2
    assert ours.mean("nDCG@10") == pytest.approx((1 / math.log2(3) + 3 / math.log2(5)) / ideal)
    assert ours.mean("nDCG@3") == pytest.approx((1 / math.log2(3)) / ideal)
    assert ours.mean("RR@10") == 0.5
    assert ours.mean("RR@1") == 0
    assert ours.mean("P@5") == pytest.approx(2 / 5)
    assert ours.mean("R@4") == pytest.approx(2 / 3)
    assert ours.mean("MAP") == pytest.approx((1 / 2 + 2 / 4) / 3)


def test_a_query_with_negative_judgements_alone_counts_zero() -> None:
    ours = evaluate({"q": {"a": 1.0}, "r": {"a": 1.0}}, {"q": {"a": -2}, "r": {"a": 1}}, ["nDCG@10", "MAP", "R@5"])
    assert [ours.values(m).tolist() for m in ours.per_query] == [[0.0, 1.0]] * 3


def test_ties_go_to_the_greater_id() -> None:
    run = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}}
    assert [evaluate(run, {"q": {d: 1}}, ["RR"]).mean("RR") for d in "abc"] == [1 / 3, 1 / 2, 1.0]


def test_missing_and_unjudged_queries_are_counted() -> None:
    ours = evaluate({"q1": {"a": 1.0}, "other": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 0}}, ["RR"])
    assert ours.query_ids == ("q1", "q2", "q3")
    assert ours.values("RR").tolist() == [1.0, 0.0, 0.0]
    assert (ours.num_missing, ours.num_not_judged) == (2, 1)


def test_refuses_nan_and_nothing() -> None:
    with pytest.raises(DataError, match="query 'q': the run has a score that is NaN"):
        evaluate({"q": {"a": math.nan}}, {"q": {"a": 1}})
    with pytest.raises(DataError, match="no judgements"):
        evaluate({"q": {"a": 1.0}}, {})


@pytest.mark.parametrize("text", ["nDCG@10", "RR@10", "R@100", "P@5", "MAP", "RR", "nDCG", "MAP@3"])
def test_a_measure_is_its_name(text: str) -> None:
    assert str(Measure.parse(text)) == text
    assert Measure.parse(text.lower()) == Measure.parse(text)


@pytest.mark.parametrize("text", ["NDGC@10", "nDCG@0", "nDCG@", "nDCG@-1", "R", "P", "", "@10", "nDCG@1.5", "nDCG@10 "])
def test_refuses_measures(text: str) -> None:
    with pytest.raises(UsageError, match="measure"):
        Measure.parse(text)


def test_asking_for_what_was_not_evaluated() -> None:
    with pytest.raises(UsageError, match=r"'RR@3' was not evaluated; evaluated are nDCG@10, RR@10, R@100"):
        evaluate({}, {"q": {"a": 1}}).mean("RR@3")


def test_bootstrap_interval_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).uniform(size=2000)
    interval = bootstrap_interval(values, num_samples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert interval.high == pytest.approx(values.mean() + half, abs=half / 10)


def test_bootstrap_interval_equals_plain_resampling_in_its_quantiles() -> None:
    """Three values: the resampled mean has 10 outcomes with known chances, so the quantiles are known."""
    values = np.array([0.0, 0.0, 1.0])
    means = sorted(np.mean(sample) for sample in itertools.product(values, repeat=3))
    interval = bootstrap_interval(values, level=0.6, num_samples=20_000)
    assert (interval.low, interval.high) == (np.quantile(means, 0.2), np.quantile(means, 0.8))


def test_bootstrap_is_seeded_and_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).uniform(size=50)
    first = bootstrap_interval(values, num_samples=500, seed=1)
    assert bootstrap_interval(values, num_samples=500, seed=1) == first
    assert bootstrap_interval(values, num_samples=500, seed=2) != first
    monkeypatch.setattr("retrieval.evaluate._CHUNK_NUMBERS", 1000)
    chunked = bootstrap_interval(values, num_samples=500, seed=1)
    assert chunked.low == pytest.approx(first.low, abs=0.02)


def exact_p(a: np.ndarray, b: np.ndarray) -> float:
    """Fisher's test over all sign vectors."""
    difference = a - b
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((1, -1), repeat=len(difference))]
    return float(np.mean([s >= abs(difference.sum()) - 1e-12 for s in sums]))


@pytest.mark.parametrize("seed", range(4))
def test_randomization_approaches_the_exact_test(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 5, 12) / 4, generator.integers(0, 4, 12) / 4
    p = paired_randomization(a, b, num_permutations=40_000, seed=seed)
    expected = exact_p(a, b)
    assert p == pytest.approx(expected, abs=5 * math.sqrt(0.25 / 40_000))
    assert paired_randomization(b, a, num_permutations=40_000, seed=seed) == p


def test_randomization_is_never_zero_and_one_for_equals() -> None:
    a = np.random.default_rng(0).uniform(size=300)
    assert paired_randomization(a + 1, a, num_permutations=999) == pytest.approx(1 / 1000)
    assert paired_randomization(a, a.copy(), num_permutations=999) == 1.0


def test_randomization_holds_its_level() -> None:
    generator = np.random.default_rng(3)
    ps = []
    for seed in range(200):
        a, b = generator.uniform(size=(2, 40))
        ps.append(paired_randomization(a, b, num_permutations=199, seed=seed))
    assert 2 <= sum(p <= 0.05 for p in ps) <= 22  # 10 expected, 4 deviations


def test_randomization_of_the_size_we_use_is_seeded() -> None:
    a, b = np.random.default_rng(4).uniform(size=(2, 2326))
    p = paired_randomization(a, b, num_permutations=10_000, seed=7)
    assert p == paired_randomization(a, b, num_permutations=10_000, seed=7)
    assert p != paired_randomization(a, b, num_permutations=10_000, seed=8)


def test_randomization_refuses_other_lengths() -> None:
    with pytest.raises(DataError, match="evaluate both on the same qrels"):
        paired_randomization(np.zeros(3), np.zeros(4))


def test_a_mean_over_groups_has_the_interval_of_the_normal_law() -> None:
    """The variance of a mean of F group means is the sum of the group means' variances over F squared."""
    generator = np.random.default_rng(5)
    groups = [generator.uniform(size=400), generator.uniform(0.2, 0.4, size=50), generator.uniform(size=90)]
    mean = sum(values.mean() for values in groups) / 3
    deviation = math.sqrt(sum(values.var() / len(values) for values in groups)) / 3
    found = macro_interval(groups, num_samples=20_000)
    assert found.mean == pytest.approx(mean)
    assert found.mean != pytest.approx(np.concatenate(groups).mean(), abs=0.01)
    assert found.low == pytest.approx(mean - 1.96 * deviation, abs=0.1 * deviation)
    assert found.high == pytest.approx(mean + 1.96 * deviation, abs=0.1 * deviation)


def test_groups_are_drawn_apart() -> None:
    """Groups drawn alike would move together, and their mean as widely as each of them."""
    values = np.random.default_rng(6).uniform(size=100)
    one, two = (macro_interval([values] * count) for count in (1, 2))
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_randomization_over_groups_flips_the_terms_of_that_mean() -> None:
    generator = np.random.default_rng(8)
    a, b = ([generator.uniform(size=size) for size in (2, 6, 3)] for _ in range(2))
    terms = np.concatenate([(x - y) / len(x) for x, y in zip(a, b, strict=True)])
    sums = [abs(terms @ np.array(signs)) for signs in itertools.product((-1, 1), repeat=len(terms))]
    exact = np.mean(np.array(sums) >= abs(terms.sum()) - 1e-12)
    assert macro_randomization(a, b, num_permutations=40_000) == pytest.approx(exact, abs=0.0125)
    assert abs(exact - exact_p(np.concatenate(a), np.concatenate(b))) > 0.0125


def test_randomization_over_groups_refuses_other_lengths() -> None:
    with pytest.raises(DataError, match="evaluate both on the same qrels"):
        macro_randomization([np.zeros(3)], [np.zeros(4)])
