"""A benchmark of tiny folders: its runs are those of the retriever, its figures those of its runs, and it goes on."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.mesh import mesh_from_text
from jaxscale.store import commit
from retrieval.benchmark import run as benchmark_run
from retrieval.benchmark.run import Contender, run_benchmark
from retrieval.benchmark.runs_folder import SYSTEMS, open_runs
from retrieval.benchmark.searches import SearchOptions
from retrieval.benchmark.table import Benchmark
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.formats.trec import read_run
from retrieval.retriever import Retriever, Sources
from retrieval.search.hybrid import FusionConfig
from tests.retrieval.tiny_retriever import tiny_docs, tiny_queries, tiny_towers, write_corpus, write_retriever

MEASURES = ("nDCG@5", "R@20")
OPTIONS = SearchOptions(depth=20)


def contender(seed=0):
    return Contender(name=f"model {seed}", towers=tiny_towers(seed))


def benchmark(home, *names, out="out", seed=0, **settings):
    return run_benchmark(
        contender(seed),
        [home / name for name in names],
        home / out,
        mesh_from_text("data=1@0"),
        **{"options": OPTIONS, "measures": MEASURES} | settings,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two folders, one without a dev split, benchmarked against another retriever; the parts stay."""
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "with-dev", num_docs=40)
    docs = tiny_docs(30, seed=1)
    queries, qrels = tiny_queries(docs, 10)
    write_beir(home / "without-dev", docs, queries, {"test": qrels["test"]})
    benchmark(home, "with-dev", "without-dev", against=contender(seed=1), keep_parts=True)
    return home


@pytest.fixture
def copy(home, tmp_path):
    """The same, to change."""
    return shutil.copytree(home, tmp_path / "home")


@pytest.fixture
def nothing_is_searched(monkeypatch):
    def search(*_):
        raise AssertionError("searched again")

    monkeypatch.setattr(benchmark_run, "search_dataset", search)


def results(home, out="out"):
    text = (home / out / "results" / "results.json").read_text()
    return typed_json.decode(Benchmark, json.loads(text))


@pytest.mark.parametrize("name", ["with-dev", "without-dev"])
def test_the_runs_are_what_the_retriever_finds_part_by_part(home, tmp_path, name):
    write_retriever(tmp_path / "model")
    parts = home / "out" / "parts" / name
    folder = BeirFolder.open(home / name)
    queries = [query for query in folder.queries() if query.id in folder.qrels("test")]
    vectors = next(
        path for path in parts.glob("vectors-*") if _contract(path) == typed_json.encode(tiny_towers().contract)
    )
    mesh = mesh_from_text("data=1@0")
    dense = Retriever.load(tmp_path / "model", vectors=vectors, mesh=mesh)
    fusion = FusionConfig(depth=OPTIONS.depth)
    hybrid = Retriever.load(tmp_path / "model", vectors=vectors, bm25=parts / "bm25", fusion=fusion, mesh=mesh)
    found = open_runs(home / "out" / "runs" / name)
    if name == "with-dev":
        dev = [query for query in folder.queries() if query.id in folder.qrels("dev")]
        hybrid, chosen = hybrid.choose_fusion_weight(dev, folder.qrels("dev"))
        assert found.description.dense_weight == chosen.dense_weight
    else:
        assert found.description.dense_weight == 0.5
    expected = {"dense": dense, "hybrid": hybrid, "bm25": Retriever.load(Sources(bm25=parts / "bm25"))}
    for system in SYSTEMS:
        run = expected[system].run(queries, OPTIONS.depth)
        read = found.read(system)
        assert {q: set(scores) for q, scores in read.items()} == {q: set(scores) for q, scores in run.items()}, system
        for query_id, scores in run.items():
            np.testing.assert_allclose([read[query_id][d] for d in scores], list(scores.values()), atol=1e-5)


def _contract(vectors):
    return commit.open_committed(vectors).manifest.config["contract"]


def test_the_figures_are_those_of_the_runs(home):
    found = results(home)
    assert [folder.name for folder in found.folders] == ["with-dev", "without-dev"]
    assert [folder.chosen_on_dev for folder in found.folders] == [True, False]
    for folder in found.folders:
        qrels = BeirFolder.open(home / folder.name).qrels("test")
        runs = {name: home / "out" / "runs" / folder.name / f"{name}.trec" for name in SYSTEMS}
        runs["dense_before"] = home / "out" / "against" / folder.name / "dense.trec"
        for name, path in runs.items():
            measured = evaluate(read_run(path), qrels, MEASURES)
            assert folder.figures.systems[name]["nDCG@5"] == measured.interval("nDCG@5"), name
    means = [folder.figures.systems["dense"]["R@20"].mean for folder in found.folders]
    assert found.mean.systems["dense"]["R@20"].mean == pytest.approx(np.mean(means))
    assert "without-dev" in (home / "out" / "results" / "report.html").read_text()


def test_everything_is_committed(home):
    for name in ("runs/with-dev", "against/without-dev", "results"):
        commit.open_committed(home / "out" / name, check="full")


@pytest.mark.usefixtures("nothing_is_searched")
def test_the_same_again_searches_nothing_and_says_the_same(copy):
    before = (copy / "out" / "results" / "results.json").read_bytes()
    benchmark(copy, "with-dev", "without-dev", against=contender(seed=1))
    assert (copy / "out" / "results" / "results.json").read_bytes() == before


@pytest.mark.usefixtures("nothing_is_searched")
def test_fewer_folders_other_measures_and_no_rival_need_no_search(copy):
    found = benchmark(copy, "without-dev", measures=("RR@10",))
    assert found.mean is None
    assert list(found.folders[0].figures.systems) == list(SYSTEMS)
    assert found == results(copy)


@pytest.mark.usefixtures("nothing_is_searched")
def test_an_earlier_benchmark_is_what_is_compared_with(copy):
    shutil.copytree(copy / "out" / "against", copy / "earlier" / "runs")
    found = benchmark(copy, "with-dev", "without-dev", against=copy / "earlier")
    assert found.against == str(copy / "earlier")
    rival = benchmark(copy, "with-dev", "without-dev", against=contender(seed=1))
    assert found.mean == rival.mean


def test_a_run_that_was_cut_goes_on_with_the_folder_it_was_in(home, tmp_path, monkeypatch):
    for name in ("with-dev", "without-dev"):
        shutil.copytree(home / name, tmp_path / name)
    searched, real = [], benchmark_run.search_dataset

    def cut_in_the_second(dataset, towers, parts, *rest):
        searched.append(dataset.name)
        if len(searched) == 2:
            parts.bm25(dataset)
            raise KeyboardInterrupt
        return real(dataset, towers, parts, *rest)

    monkeypatch.setattr(benchmark_run, "search_dataset", cut_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        benchmark(tmp_path, "with-dev", "without-dev")
    assert (tmp_path / "out" / "parts" / "without-dev" / "bm25").is_dir()
    benchmark(tmp_path, "with-dev", "without-dev")
    assert searched == ["with-dev", "without-dev", "without-dev"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == ["results", "runs"]
    for name in ("with-dev", "without-dev"):
        for system in SYSTEMS:
            run = f"out/runs/{name}/{system}.trec"
            assert (tmp_path / run).read_bytes() == (home / run).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 2}, "with-dev holds runs of something else: query_encoder is"),
        ({"options": dataclasses.replace(OPTIONS, depth=30)}, "depth is 20, now 30; choose another --out"),
        ({"options": dataclasses.replace(OPTIONS, split="dev", dev="none")}, "split is test, now dev"),
        ({"against": Contender(name="2", towers=tiny_towers(2))}, "against/with-dev holds runs of something else"),
        ({"measures": ("R@100",)}, "depth=20 is too shallow for a measure at 100"),
        ({"measures": ("RR", "rr")}, "none twice"),
        ({"measures": ()}, "at least one"),
    ],
)
def test_what_does_not_fit_what_is_there_is_refused(home, settings, message):
    before = (home / "out" / "results" / "MANIFEST.json").read_bytes()
    with pytest.raises(UsageError, match=message):
        benchmark(home, "with-dev", **settings)
    assert (home / "out" / "results" / "MANIFEST.json").read_bytes() == before


def test_a_changed_corpus_is_refused(copy):
    shutil.rmtree(copy / "with-dev")
    write_corpus(copy / "with-dev", num_docs=41)
    with pytest.raises(UsageError, match="corpus is"):
        benchmark(copy, "with-dev")


def test_folders_of_one_name_and_no_folder_are_refused(home, tmp_path):
    shutil.copytree(home / "with-dev", tmp_path / "with-dev")
    settings = {"options": OPTIONS, "measures": MEASURES}
    for data, message in (
        ([home / "with-dev", tmp_path / "with-dev"], "have the name 'with-dev'"),
        ([], "got no folder"),
    ):
        with pytest.raises(UsageError, match=message):
            run_benchmark(contender(), data, tmp_path / "out", mesh_from_text("data=1@0"), **settings)
    assert not (tmp_path / "out").exists()


def test_an_earlier_benchmark_without_the_folder_or_of_another_depth_is_refused(home, tmp_path):
    with pytest.raises(DataError, match="expected an earlier benchmark of 'with-dev'"):
        benchmark(home, "with-dev", out=tmp_path / "new", against=tmp_path)
    deeper = dataclasses.replace(OPTIONS, depth=30)
    with pytest.raises(UsageError, match="depth is 20, now 30"):
        benchmark(home, "with-dev", out=tmp_path / "new", against=home / "out", options=deeper)
    assert not (tmp_path / "new").exists()


def test_a_damaged_run_is_found(copy):
    file = copy / "out" / "runs" / "with-dev" / "dense.trec"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"dense\.trec"):
        benchmark(copy, "with-dev")
