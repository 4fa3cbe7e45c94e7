"""The page of a benchmark: what it draws of figures that are known."""

import pytest

from jaxscale.observe.report import render
from retrieval.benchmark.page import benchmark_report
from retrieval.benchmark.table import Benchmark, FolderFigures, figures_of
from tests.jaxscale.observe.test_report import Page
from tests.retrieval.benchmark.test_table import MEASURES, evaluation

VALUES = {"bm25": [0.5, 0.3], "dense": [0.2, 0.4], "hybrid": [0.6, 0.6]}


def folder_of(name, systems, *, chosen_on_dev=True, num_missing=0):
    return FolderFigures(
        name=name,
        num_docs=1234,
        num_truncated=7,
        num_queries=2,
        num_missing=num_missing,
        dense_weight=0.35,
        chosen_on_dev=chosen_on_dev,
        runs="0" * 64,
        figures=figures_of([systems], MEASURES),
    )


def page_of(*names, against=None, **settings):
    systems = {name: evaluation(values) for name, values in VALUES.items()}
    if against:
        systems |= {f"{name}_before": evaluation([0.1, 0.1]) for name in ("dense", "hybrid")}
    benchmark = Benchmark(
        model="runs/<tuned>",
        against=against,
        split="test",
        measures=MEASURES,
        depth=100,
        folders=tuple(folder_of(name, systems, **settings) for name in names),
        mean=figures_of([systems] * len(names), MEASURES) if len(names) > 1 else None,
    )
    return Page(render(benchmark_report(benchmark)))


def test_one_folder_has_its_table_and_its_tests():
    page = page_of("nq")
    assert len(page.all("table")) == 3
    assert "0.600" in page.text
    assert "1,234 passages, 7 of them cut off; weight of dense in the hybrid 0.35, chosen on dev queries" in page.text
    assert "nq (BM25)0.400 0.600 +0.200" in page.text.replace("0.4000.600+", "0.400 0.600 +")
    assert "Mean over" not in page.text


def test_several_folders_begin_with_their_mean():
    page = page_of("nq", "fiqa")
    assert len(page.all("table")) == 5
    assert "Mean over 2 folders" in page.text
    assert page.text.count("mean (BM25)") == 2 * len(MEASURES)


def test_another_retriever_has_a_table_from_and_to():
    page = page_of("nq", "fiqa", against="all-MiniLM")
    assert len(page.all("table")) == 7
    assert "From all-MiniLM to runs/<tuned>." in page.text
    assert "fiqa0.1000.300+0.200" in page.text
    assert "dense, before" in page.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chosen_on_dev": False}, "given, there being no dev split"),
        ({"num_missing": 3}, "3 queries have no text and count as zero"),
    ],
)
def test_what_a_reader_must_know_is_said(settings, words):
    assert words in page_of("nq", **settings).text


def test_names_are_text():
    assert not page_of("<script>").all("script")
