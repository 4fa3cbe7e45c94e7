"""The figures of a benchmark, out of runs whose measures are known by hand."""

import numpy as np
import pytest

from retrieval.benchmark.table import figures_of
from retrieval.evaluate import Evaluation, paired_randomization

MEASURES = ("nDCG@10", "RR@10")


def evaluation(values, reciprocal_ranks=None):
    """Measures of as many queries as there are values."""
    ranks = values if reciprocal_ranks is None else reciprocal_ranks
    return Evaluation(
        query_ids=tuple(f"q{i}" for i in range(len(values))),
        per_query={"nDCG@10": np.array(values, float), "RR@10": np.array(ranks, float)},
        num_missing=0,
        num_not_judged=0,
    )


@pytest.fixture
def folders():
    generator = np.random.default_rng(0)
    small, large = (
        {
            name: evaluation(generator.uniform(low, 1, size))
            for name, low in (("bm25", 0.1), ("dense", 0), ("hybrid", 0.2))
        }
        for size in (5, 60)
    )
    return [small, large]


def test_one_folder_has_the_means_intervals_and_tests_of_its_queries(folders):
    figures = figures_of(folders[1:], MEASURES)
    bm25, dense = (folders[1][name].values("nDCG@10") for name in ("bm25", "dense"))
    assert figures.systems["bm25"]["nDCG@10"] == folders[1]["bm25"].interval("nDCG@10")
    found = figures.differences[0]
    assert (found.system, found.against, found.measure) == ("dense", "bm25", "nDCG@10")
    assert found.difference.mean == pytest.approx(dense.mean() - bm25.mean())
    assert found.difference.low < found.difference.mean < found.difference.high
    assert found.p == pytest.approx(paired_randomization(dense, bm25), abs=0.01)


def test_over_folders_each_weighs_the_same(folders):
    figures = figures_of(folders, MEASURES)
    for name, by_measure in figures.systems.items():
        means = [folder[name].mean("nDCG@10") for folder in folders]
        assert by_measure["nDCG@10"].mean == pytest.approx(sum(means) / 2)


def test_the_hybrid_is_held_against_the_better_of_both_by_each_measure():
    folder = {
        "bm25": evaluation([0.9, 0.8], [0.1, 0.2]),
        "dense": evaluation([0.1, 0.2], [0.9, 0.8]),
        "hybrid": evaluation([1.0, 1.0]),
    }
    against = {d.measure: d.against for d in figures_of([folder], MEASURES).differences if d.system == "hybrid"}
    assert against == {"nDCG@10": "bm25", "RR@10": "dense"}


def test_what_was_before_is_compared_with_what_it_became(folders):
    one = folders[0] | {"dense_before": folders[0]["bm25"], "hybrid_before": folders[0]["hybrid"]}
    before = {d.system: d for d in figures_of([one], MEASURES[:1]).differences if d.against.endswith("_before")}
    assert before["dense"].difference.mean == pytest.approx(one["dense"].mean("nDCG@10") - one["bm25"].mean("nDCG@10"))
    assert (before["hybrid"].difference.mean, before["hybrid"].p) == (0.0, 1.0)
