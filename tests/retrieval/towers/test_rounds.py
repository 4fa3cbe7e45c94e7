"""Training in rounds: what is in the folder, the same bits after kills anywhere, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.train.events import read_events
from launch.cli import main
from retrieval.towers.loading import load_towers
from retrieval.towers.mined_job import MinedTowerJob
from retrieval.towers.mining import Mining
from retrieval.towers.negatives_folder import read_description
from retrieval.towers.pair_table import make_table
from retrieval.towers.pairs import read_source
from retrieval.towers.rounds import Rounds
from tests.jaxscale.store import faults
from tests.retrieval.towers.round_runs import mined_job, train_job, train_mined
from tests.retrieval.towers.small_pairs import NUM_DOCS, write_pairs

RECIPE = f"{Path(__file__).parent / 'round_runs.py'}:mined_tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, folder, cache):
    """The folder of two rounds that nothing happened to, and what they came to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train_job(mined_job(folder, cache), out)


def events_of(out):
    return [event["event"] for event in read_events(out)]


def bits(out):
    """All that must be the same however often the run was killed."""
    parts = ("model", "negatives-1", "round-0/model", "round-1/model")
    files = {
        p.relative_to(out): p.read_bytes() for part in parts for p in sorted((out / part).rglob("*")) if p.is_file()
    }
    ends = [(e["step"], e["state_hash"], e["best"]) for e in read_events(out) if e["event"] == "finished"]
    return files, ends


def test_each_round_is_a_run_and_the_second_trains_on_what_the_first_has_mined(whole, folder):
    out, result = whole
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {"job.json", "events.jsonl", "round-0", "negatives-1", "round-1", "model"}
    assert events_of(out) == ["started", "trained", "mined", "trained", "finished"]
    first, second, last = (load_towers(out / name).contract for name in ("round-0", "round-1", "."))
    assert second == last != first
    mined = read_description(out / "negatives-1")
    assert mined.contract == first
    identities = [json.loads((out / f"round-{n}" / "job.json").read_text())["identity"] for n in (0, 1)]
    assert [identity["data"]["num_hard_negatives"] for identity in identities] == [0, 1]
    assert identities[0]["towers"]["init_from"] is None
    assert identities[1]["towers"]["init_from"] is not None
    assert identities[0]["training"]["seed"] != identities[1]["training"]["seed"]
    assert result.model == str(out / "model")
    assert result.state_hash == read_events(out / "round-1")[-1]["state_hash"]
    source = read_source(folder, "train", "dev")
    table = make_table(source, out / "negatives-1", 4)
    for query, negatives in zip(table.query_ids, table.hard_negatives, strict=True):
        assert not {source.docs[row].id for row in negatives} & source.qrels[query].keys()


def test_the_same_command_again_does_nothing(whole, folder, cache, capsys):
    out, result = whole
    before = bits(out), events_of(out)
    words = ["--data.folder", str(folder), "--operation.compile-cache", str(cache)]
    assert main(["train", RECIPE, "--out", str(out), *words]) == 0
    shown = capsys.readouterr()
    assert "all 2 rounds are finished" in shown.err
    assert result.state_hash[:16] in shown.out
    assert (bits(out), events_of(out)) == before


def test_killed_in_mining_after_it_in_the_second_round_and_at_the_end_the_bits_are_the_same(
    whole, folder, cache, tmp_path
):
    out = tmp_path / "run"
    for failpoint in ("mining.searched", "rounds.mined", "commit.acknowledged@2", "rounds.model_saved"):
        faults.run_until_killed(train_mined, folder, cache, out, failpoint=failpoint)
    killed_in_training = [event["event"] for event in read_events(out / "round-1")]
    assert "resumed" in killed_in_training
    train_mined(folder, cache, out)
    assert bits(out) == bits(whole[0])
    assert events_of(out).count("trained") == 2
    assert not (out / "vectors-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint",
    [
        "commit.acknowledged@2",  # in the first round
        "rounds.trained",
        "embed.shard_encoded",
        "embed.before_finish",
        "rounds.embedded",
        "commit.before_remove",
        "rounds.trained@2",
    ],
)
def test_killed_anywhere_the_bits_are_the_same(whole, folder, cache, tmp_path, failpoint):
    faults.run_until_killed(train_mined, folder, cache, tmp_path / "run", failpoint=failpoint)
    train_mined(folder, cache, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(whole[0])


def test_the_model_to_start_from_mines_first_and_is_where_every_round_starts(whole, folder, cache, tmp_path):
    start = whole[0] / "round-0" / "model"
    rounds = Rounds(num_rounds=2, mine_first=True, start="origin", mining=Mining(depth=20))
    job = dataclasses.replace(mined_job(folder, cache, training={"num_steps": 1}), rounds=rounds)
    out = tmp_path / "run"
    train_job(job.starting_from(str(start)), out)
    assert events_of(out) == ["started", "mined", "trained", "mined", "trained", "finished"]
    assert (
        load_towers(out / "start").contract
        == load_towers(start).contract
        == read_description(out / "negatives-0").contract
    )
    assert read_description(out / "negatives-1").contract == load_towers(out / "round-0").contract
    identities = [json.loads((out / f"round-{n}" / "job.json").read_text())["identity"] for n in (0, 1)]
    assert identities[0]["towers"] == identities[1]["towers"]
    assert [identity["data"]["num_hard_negatives"] for identity in identities] == [1, 1]


def test_another_job_and_negatives_of_another_model_are_refused(whole, folder, cache, tmp_path):
    out = shutil.copytree(whole[0], tmp_path / "run")
    before = bits(out), events_of(out)
    with pytest.raises(
        UsageError, match=r"holds the run of another job; changed:\n  round\.training\.num_steps: 6 -> 8"
    ):
        train_job(mined_job(folder, cache, training={"num_steps": 8}), out)
    with pytest.raises(UsageError, match=r"rounds\.num_rounds: 2 -> 3"):
        train_job(mined_job(folder, cache, rounds={"num_rounds": 3}), out)
    assert (bits(out), events_of(out)) == before
    # As if the first round had been replaced by hand.
    events = (out / "events.jsonl").read_text().splitlines(keepends=True)
    (out / "events.jsonl").write_text("".join(events[:2]))
    shutil.rmtree(out / "round-0" / "model")
    shutil.copytree(out / "round-1" / "model", out / "round-0" / "model")
    with pytest.raises(UsageError, match="negatives-1 was mined by another model"):
        train_job(mined_job(folder, cache), out)


def test_a_step_is_planned_with_mined_negatives():
    assert mined_job(Path("nowhere")).planned_step().batch["document_tokens"].shape == (16, 2, 32)


def test_json_round_trip(folder):
    job = mined_job(folder)
    assert typed_json.decode(MinedTowerJob, json.loads(json.dumps(typed_json.encode(job)))) == job


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_rounds": 0}, "num_rounds=0 must be at least 1"),
        ({"num_rounds": 1}, "num_rounds=1 without mine_first mines nothing"),
        ({"num_hard_negatives": 0}, "num_hard_negatives=0 must be at least 1"),
        ({"num_hard_negatives": 9}, r"at most the mining\.num_negatives=8"),
        ({"mining": Mining(fill=False)}, r"mining\.fill=False would leave queries without"),
    ],
)
def test_rounds_that_can_not_be_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        Rounds(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"hard_negatives": "file", "num_hard_negatives": 1}}, "but the rounds mine their own"),
        ({"rounds": {"mine_first": True}}, r"add `--towers\.init-from DIR`"),
        ({"data": {"folder": ""}}, r"add `--data\.folder DIR`"),
        ({"data": {"crops_per_document": 1}}, "exclude each other"),
        ({"training": {"global_batch_size": 1}}, "which has no negatives"),
    ],
)
def test_parts_that_do_not_fit_are_refused(folder, changes, said):
    with pytest.raises(UsageError, match=said):
        mined_job(folder, **changes).check(MeshSpec(data=1))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rounds": {"mining": Mining()}}, UsageError, f"depth=100 is more than the {NUM_DOCS} documents"),
        ({"rounds": {"mining": Mining(depth=9, max_score=7.0)}}, UsageError, "must be between -1 and 1"),
        ({"data": {"split": "nowhere"}}, DataError, "nowhere"),
        ({"training": {"global_batch_size": 512}}, UsageError, "global_batch_size=512 is more than"),
    ],
)
def test_what_does_not_suit_the_data_is_refused_before_anything_is_written(folder, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        train_job(mined_job(folder, **changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_fork_a_replay_and_a_report_of_several_runs_are_refused(whole, folder, tmp_path, capsys):
    words = ["--data.folder", str(folder), "--fork-from", str(whole[0] / "round-0")]
    assert main(["train", RECIPE, "--out", str(tmp_path / "run"), *words]) == 2
    assert "a job of several runs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    again = shutil.copytree(whole[0], tmp_path / "again")
    job = json.loads((again / "job.json").read_text())
    job["command"] = [RECIPE, "--out", str(again), "--data.folder", str(folder)]
    (again / "job.json").write_text(json.dumps(job))
    assert main(["replay", str(again), "--step", "1"]) == 2
    assert "is a folder of several runs" in capsys.readouterr().err
    assert main(["report", str(again)]) == 3
    assert "is a folder of several runs; name one of them: round-0, round-1" in capsys.readouterr().err
    assert main(["report", str(again / "round-1")]) == 0
