"""A study of tiny towers: killed and started again it ends with the same results; what it holds and refuses."""

import json
import shutil
from pathlib import Path

import pytest

from jaxscale.errors import DataError, UsageError
from jaxscale.store import commit
from jaxscale.train.events import read_events
from retrieval.formats.beir import BeirFolder
from retrieval.scaling.inputs import claim_study
from retrieval.scaling.study import FORMAT, read_results, run_study
from retrieval.towers.loading import load_towers
from retrieval.towers.pairs import read_source
from tests.jaxscale.store import faults
from tests.retrieval.scaling.small_family import run_small, small_family
from tests.retrieval.towers.small_pairs import write_pairs

RUNS = ("l1-w32-p32", "l1-w32-p64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("beir") / "b")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def whole(folder, cache, tmp_path_factory):
    """The study that nobody killed."""
    out = tmp_path_factory.mktemp("whole") / "study"
    run_study(small_family(folder, cache), out)
    return out


def results_of(out):
    return {file.name: file.read_bytes() for file in (out / "results").iterdir()}


def events_of(out, run):
    return [event["event"] for event in read_events(out / "runs" / run)]


def test_killed_between_and_within_runs_it_ends_with_the_same_results(folder, cache, whole, tmp_path):
    out = tmp_path / "study"
    faults.run_until_killed(run_small, folder, cache, out, failpoint="scaling.run_measured")
    assert events_of(out, RUNS[0])[-1] == "finished"
    assert not (out / "runs" / RUNS[1]).exists()
    faults.run_until_killed(run_small, folder, cache, out, failpoint="commit.before_rename@3")
    assert "finished" not in events_of(out, RUNS[1])
    before = events_of(out, RUNS[0])
    run_small(folder, cache, out)
    assert "resumed" in events_of(out, RUNS[1])
    assert events_of(out, RUNS[0]) == before  # not trained again
    assert results_of(out) == results_of(whole)


def test_a_finished_study_is_read_not_run(folder, cache, whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "study")
    shutil.rmtree(copy / "runs")
    points, laws = run_study(small_family(folder, cache), copy)
    assert (points, laws) == read_results(whole / "results")
    assert not (copy / "runs").exists()
    assert [(point.size, point.num_pairs, point.num_steps) for point in points] == [
        ("l1-w32", 32, 4),
        ("l1-w32", 64, 8),
    ]
    assert laws.joint is None  # two runs tell no law
    assert commit.open_committed(copy / "results").manifest.format == FORMAT


def test_a_point_is_what_its_run_ended_with(folder, cache, whole):
    points, _ = read_results(whole / "results")
    for run, point in zip(RUNS, points, strict=True):
        finished = [event for event in read_events(whole / "runs" / run) if event["event"] == "finished"]
        assert finished[-1]["state_hash"] == point.state_hash
    assert points[0].contrastive_entropy != points[1].contrastive_entropy


def test_all_runs_share_a_tokenizer_and_those_of_a_size_their_first_weights(whole):
    start = load_towers(whole / "starts" / "l1-w32")
    for run in RUNS:
        trained = load_towers(whole / "runs" / run)
        assert trained.document.tokenizer.fingerprint == start.document.tokenizer.fingerprint
        identity = json.loads((whole / "runs" / run / "job.json").read_text())["identity"]
        assert identity["towers"]["init_from"] is not None
    first, second = (json.loads((whole / "runs" / run / "job.json").read_text())["identity"] for run in RUNS)
    assert first["towers"] == second["towers"]


def test_amounts_are_nested_parts_of_the_labelled_pairs(whole, folder):
    data = BeirFolder.open(whole / "data", check="full")
    amounts = [
        {(query, doc) for query, judged in data.qrels(f"pairs-{number}").items() for doc in judged}
        for number in (32, 64)
    ]
    labelled = {
        (query, doc)
        for query, judged in BeirFolder.open(folder).qrels("train").items()
        for doc, relevance in judged.items()
        if relevance > 0
    }
    assert list(map(len, amounts)) == [32, 64]
    assert amounts[0] < amounts[1] < labelled


def test_a_folder_of_another_study_or_of_anything_else_is_refused(folder, whole, tmp_path):
    with pytest.raises(UsageError, match="holds a study that differs in num_epochs"):
        run_study(small_family(folder, num_epochs=3), whole)
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(UsageError, match=r"is not empty and no scaling study \(letter\)"):
        run_study(small_family(folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


def test_more_pairs_than_there_are_are_refused_and_nothing_is_written(folder, tmp_path):
    family = small_family(folder, num_pairs=(32, 100_000))
    with pytest.raises(DataError, match="100000 pairs are asked for, the split has"):
        run_study(family, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_the_place_of_data_does_not_make_another_study(folder, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    source = read_source(folder, "train", "dev")
    _, identity = claim_study(tmp_path / "study", small_family(folder), source)
    assert claim_study(tmp_path / "study", small_family(moved), source)[1] == identity


@pytest.mark.slow
def test_a_family_of_several_sizes_gets_its_points(folder, cache, tmp_path):
    family = small_family(folder, cache, num_layers=(1, 1, 2), widths=(16, 32, 32), num_pairs=(32, 64, 128))
    points, laws = run_study(family, tmp_path / "study")
    assert len(points) == 9
    assert len({point.num_params for point in points}) == 3
    assert (laws.joint is None) == ("joint" in laws.refused)
    assert (tmp_path / "study" / "results" / "report.html").read_text().startswith("<!")
