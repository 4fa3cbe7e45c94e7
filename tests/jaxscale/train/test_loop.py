"""Whole runs of a tiny objective: stopped, resumed, extended, forked, diverged; on what disk and mesh."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from jaxscale.errors import DivergedError, Interrupted, MachineError, Preempted, UsageError
from jaxscale.observe.compiles import CompileCounter
from jaxscale.observe.metrics import read_metrics
from jaxscale.store import disk
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train.events import read_events
from jaxscale.train.loop import train
from jaxscale.train.resume import Fork
from jaxscale.train.run_folder import RunFolder, read_job
from jaxscale.train.signals import StopSignals
from jaxscale.train.speedometer import MEASURED
from tests.jaxscale.train import tiny


def go(job, out, *, objective=None, **options):
    # Patient: a test's process must never be ended by the thread that watches the signals.
    with StopSignals(patience_s=600) as stop:
        return train(objective or job.objective(), job.training, job.operation, out, stop=stop, **options)


def events(out, name):
    return [event for event in read_events(out) if event["event"] == name]


def rows_without_times(out):
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(out)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signalled:
    """An objective in one of whose calls the process gets a signal."""

    objective: tiny.TinyObjective
    number: int
    phase: str
    at: int = 0

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def batch(self, number, rows=slice(None)):
        if self.phase == "batch" and number == self.at:
            os.kill(os.getpid(), self.number)
        return self.objective.batch(number, rows)

    def loss(self, params, batch, key):
        # Traced twice by now: for the plan, and for the program.
        if self.phase == "compile":
            os.kill(os.getpid(), self.number)
        return self.objective.loss(params, batch, key)

    def evaluate(self, params, mesh):
        if self.phase == "evaluate":
            os.kill(os.getpid(), self.number)
        return self.objective.evaluate(params, mesh)

    def export(self, params, path):
        if self.phase == "export":
            os.kill(os.getpid(), self.number)
        return self.objective.export(params, path)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """These runs share their programs; test_compile_cache.py shows that this changes no bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "COMPILE_CACHE", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    job = tiny.job(eval_every_steps=4, best_metric="error", best_mode="min")
    return job, out, go(job, out)


def test_a_run_learns_and_leaves_a_whole_folder(whole):
    job, out, result = whole
    assert result.step == 12
    assert result.trained
    rows = [row for row in read_metrics(out) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8, 10, 12]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert read_events(out)[0]["event"] == "started"
    assert events(out, "finished")[0]["state_hash"] == result.state_hash
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoints",
        "environment.json",
        "events.jsonl",
        "job.json",
        "metrics.jsonl",
        "model",
        "plan.json",
    ]
    assert read_job(out).identity == job.objective().identity
    assert not list(out.parent.glob(".*.lock"))


def test_the_exported_model_is_the_best_one(whole):
    job, out, result = whole
    values = {e["step"]: e["metrics"]["error"] for e in events(out, "evaluated")}
    best_step = min(values, key=lambda step: (values[step], step))
    assert (result.best.step, result.best.value) == (best_step, values[best_step])
    exported = json.loads((out / "model/model.json").read_text())
    params = jax.tree.map(np.float32, exported, is_leaf=lambda leaf: isinstance(leaf, list))
    assert job.objective().evaluate(params, None)["error"] == pytest.approx(values[best_step], rel=1e-6)
    kept = Checkpoints(out / "checkpoints").steps()
    assert kept == sorted({best_step, 8, 12})


def test_a_finished_run_says_so_and_does_nothing(whole, capsys):
    job, out, result = whole
    before = {p: p.stat().st_mtime_ns for p in (out / "events.jsonl", out / "metrics.jsonl", out / "model/model.json")}
    again = go(job, out)
    assert again == dataclasses.replace(result, trained=False)
    assert "finished at step 12; nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("number", "phase", "error"),
    [
        (signal.SIGTERM, "batch", Preempted),
        (signal.SIGINT, "batch", Interrupted),
        (signal.SIGTERM, "compile", Preempted),
        (signal.SIGINT, "evaluate", Interrupted),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(whole, tmp_path, number, phase, error):
    job, whole_out, result = whole
    objective = Signalled(objective=job.objective(), number=number, phase=phase, at=7)
    with pytest.raises(error, match="the same command goes on"):
        go(job, tmp_path / "run", objective=objective)
    assert events(tmp_path / "run", "stopped")[-1]["reason"] == ("preempted" if error is Preempted else "interrupted")
    resumed = go(job, tmp_path / "run")
    assert (resumed.state_hash, resumed.best) == (result.state_hash, result.best)
    assert rows_without_times(tmp_path / "run") == rows_without_times(whole_out)
    if phase == "batch":
        assert events(tmp_path / "run", "resumed")[0] | {"time": ""} == {
            "time": "",
            "event": "resumed",
            "step": events(tmp_path / "run", "stopped")[0]["step"],
            "bitwise": True,
            "environment_changes": [],
            "job_changes": [],
        }


def test_a_signal_in_the_midst_of_a_save_waits_for_it(whole, tmp_path, monkeypatch):
    job, _, result = whole
    save = Checkpoints.save_async

    def signalled(self, step, state, metadata):
        save(self, step, state, metadata)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save_async", signalled)
    with pytest.raises(Preempted):
        go(job, tmp_path / "run")
    stopped = events(tmp_path / "run", "stopped")[0]["step"]
    assert stopped >= 4
    assert {4, stopped} <= {event["step"] for event in events(tmp_path / "run", "saved")}
    assert go(job, tmp_path / "run").state_hash == result.state_hash


def test_a_longer_run_is_the_run_that_was_longer_from_the_start(whole, tmp_path):
    job, _, _ = whole
    longer = dataclasses.replace(job, training=dataclasses.replace(job.training, num_steps=18))
    straight = go(longer, tmp_path / "straight")
    go(job, tmp_path / "grown")
    grown = go(longer, tmp_path / "grown")
    assert grown.trained
    assert grown.state_hash == straight.state_hash
    assert events(tmp_path / "grown", "resumed")[0]["job_changes"] == ["training.num_steps: 12 -> 18"]
    with pytest.raises(UsageError, match="num_steps=12 is below the 18"):
        go(job, tmp_path / "grown")


def test_another_job_is_refused_and_nothing_is_touched(whole):
    job, out, _ = whole
    other = dataclasses.replace(job, training=dataclasses.replace(job.training, seed=5, grad_accum=2))
    before = (out / "job.json").read_bytes()
    with pytest.raises(UsageError) as error:
        go(other, out)
    assert "training.grad_accum: 1 -> 2" in str(error.value)
    assert "training.seed: 0 -> 5" in str(error.value)
    assert "--fork-from" in str(error.value)
    assert (out / "job.json").read_bytes() == before


def test_a_fork_begins_with_the_others_state(whole, tmp_path):
    _, out, _ = whole
    slower = tiny.job(num_steps=14, schedule={"peak_learning_rate": 0.001})
    fork = Fork.parse(f"{out}@8")
    result = go(slower, tmp_path / "fork", fork=fork)
    forked = events(tmp_path / "fork", "forked")[0]
    assert forked["step"] == 8
    assert "training.optimizer.schedule.peak_learning_rate: 0.05 -> 0.001" in forked["job_changes"]
    assert [row["step"] for row in read_metrics(tmp_path / "fork") if "loss" in row] == [10, 12, 14]
    # The same command again, and the one without the flag, know the run; another origin is refused.
    assert go(slower, tmp_path / "fork", fork=fork).state_hash == result.state_hash
    assert not go(slower, tmp_path / "fork").trained
    with pytest.raises(UsageError, match="was forked from"):
        go(slower, tmp_path / "fork", fork=Fork.parse(f"{out}@12"))


def test_a_fork_of_a_step_that_is_not_there_makes_nothing(whole, tmp_path):
    job, out, _ = whole
    with pytest.raises(UsageError, match="there is no checkpoint of step 5"):
        go(job, tmp_path / "fork", fork=Fork.parse(f"{out}@5"))
    assert list(tmp_path.iterdir()) == []


def test_given_parameters_are_what_the_run_begins_with(whole, tmp_path):
    _, out, _ = whole
    job = tiny.job(num_steps=1, eval_every_steps=1).starting_from(str(out / "model"))
    go(job, tmp_path / "run")
    first = events(tmp_path / "run", "evaluated")[0]
    best = events(out, "finished")[0]["best"]["value"]
    assert first["metrics"]["error"] == pytest.approx(best, rel=1e-6)
    with pytest.raises(UsageError, match="init"):
        go(tiny.job(num_steps=1, eval_every_steps=1), tmp_path / "run")


def test_weights_gathered_at_another_time_are_said(whole, tmp_path):
    job, *_ = whole
    objective = Signalled(objective=job.objective(), number=signal.SIGTERM, phase="batch", at=7)
    with pytest.raises(Preempted):
        go(job, tmp_path / "run", objective=objective)
    changed = dataclasses.replace(job.operation, gather_weights="step")
    go(dataclasses.replace(job, operation=changed), tmp_path / "run")
    said = events(tmp_path / "run", "resumed")[0]
    assert not said["bitwise"]
    assert said["environment_changes"] == ["gather_weights: was microbatch, is step"]


def test_a_changed_mesh_is_said_and_sees_the_same_batches(whole, tmp_path):
    job, whole_out, result = whole
    objective = Signalled(objective=job.objective(), number=signal.SIGTERM, phase="batch", at=7)
    with pytest.raises(Preempted):
        go(job, tmp_path / "run", objective=objective)
    moved = dataclasses.replace(job.operation, mesh="fsdp=4@0-3")
    resumed = go(dataclasses.replace(job, operation=moved), tmp_path / "run")
    said = events(tmp_path / "run", "resumed")[0]
    assert not said["bitwise"]
    assert said["environment_changes"] == ["mesh: was data=1, is fsdp=4"]
    assert 'operation.mesh: "data=1@0" -> "fsdp=4@0-3"' in said["job_changes"]
    losses = [[row["loss"] for row in read_metrics(out) if "loss" in row] for out in (tmp_path / "run", whole_out)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert resumed.step == result.step


def test_a_diverged_run_names_the_step_and_keeps_its_last_good_state(tmp_path):
    job = tiny.job(faults=tiny.Faults(nan_from_step=5))
    with pytest.raises(DivergedError, match=r"step 8: .* 3 steps in a row .* checkpoint of step 4"):
        go(job, tmp_path / "run")
    assert [e["step"] for e in events(tmp_path / "run", "skipped")] == [6, 7, 8]
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [4]
    with pytest.raises(DivergedError, match="step 8"):
        go(job, tmp_path / "run")


def test_fewer_bad_steps_are_skipped_and_counted(tmp_path):
    go(tiny.job(faults=tiny.Faults(nan_from_step=5, nan_until_step=7)), tmp_path / "run")
    assert [row["num_skipped"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [0, 0, 0, 1, 2, 2, 2]


def test_a_loader_that_fails_ends_the_run_and_keeps_its_checkpoints(tmp_path):
    job = tiny.job(faults=tiny.Faults(dead_loader_at_step=6))
    with pytest.raises(OSError, match="the disk of the data is gone"):
        go(job, tmp_path / "run")
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [4]


def test_nothing_is_compiled_after_the_buckets_are_warm(tmp_path):
    counts = {}
    for num_steps in (6, 12):
        job = tiny.job(num_steps=num_steps, num_buckets=2, checkpoint_every_steps=3)
        with CompileCounter() as counter:
            go(job, tmp_path / str(num_steps))
        counts[num_steps] = counter.num_programs
        assert len(events(tmp_path / str(num_steps), "compiled")) == 2
    assert counts[12] <= counts[6]


def test_a_misspelt_best_metric_is_found_before_the_first_step(tmp_path):
    with pytest.raises(UsageError, match="best_metric='nDCG': the evaluation has no such metric; it has error"):
        go(tiny.job(eval_every_steps=4, best_metric="nDCG"), tmp_path / "run")


def test_retention_keeps_the_newest_and_the_milestones(tmp_path):
    go(tiny.job(checkpoint_every_steps=2, keep_last=1, keep_every_steps=6), tmp_path / "run")
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [6, 12]


def test_a_small_disk_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def no_room(path, needed_bytes, what):
        raise MachineError(f"{what} needs {needed_bytes}")

    monkeypatch.setattr(disk, "require_free", no_room)
    with pytest.raises(MachineError, match="3 checkpoints and a model of this run"):
        go(tiny.job(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"training": {"global_batch_size": 6}, "mesh": "data=2@0-1"},
            r"global_batch_size=6 must be divisible by data\*grad_accum=4; use 4 or 8",
        ),
        ({"training": {"global_batch_size": 8}, "mesh": "data=3"}, "mesh"),
    ],
)
def test_a_batch_or_mesh_that_does_not_fit_is_refused(tmp_path, fields, message):
    fields = {**fields, "training": {**fields["training"], "grad_accum": 2}}
    with pytest.raises(UsageError, match=message):
        go(tiny.job(**fields), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path):
    with RunFolder(tmp_path / "run"), pytest.raises(MachineError, match="another process"):
        go(tiny.job(), tmp_path / "run")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not a run folder .* not empty \(notes.txt\)"):
        go(tiny.job(), tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
