"""`jaxscale train` as a process: killed, stopped by signals and started again, and given what it must refuse."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxscale.observe.compiles import CompileCounter
from jaxscale.observe.metrics import read_metrics
from jaxscale.train.events import read_events
from jaxscale.train.speedometer import MEASURED

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "tests/jaxscale/train/tiny.py"
PATIENCE_S = 300.0


class Training:
    """One process of `jaxscale train`, on a tiny recipe unless told that it is one of the package's."""

    def __init__(self, recipe, out, cache, *flags, failpoint=None, recipes=f"{RECIPES}:", num_devices=2):
        self.out = out
        self._num_events = len(read_events(out))
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAXSCALE_FAILPOINT")}
        if failpoint:
            environment["JAXSCALE_FAILPOINT"] = failpoint
        command = [sys.executable, "-m", "launch.cli", "train", f"{recipes}{recipe}", "--out", str(out)]
        self.process = subprocess.Popen(
            [*command, "--devices", str(num_devices), "--operation.compile-cache", str(cache), *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def new_events(self):
        return [event["event"] for event in read_events(self.out)[self._num_events :]]

    def last_row(self):
        rows = [row for row in read_metrics(self.out) if "loss" in row] if (self.out / "metrics.jsonl").exists() else []
        return rows[-1]["step"] if rows else 0

    def wait_for(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"it ended by itself: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, number):
        self.process.send_signal(number)
        return self.end()

    def end(self):
        self.output, self.errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode


def kill_at_a_random_time(training, rng, longest_s=0.6):
    """Anywhere between the start of the process and some way into its training."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 3))
    else:
        training.wait_for(lambda: {"started", "resumed"} & set(training.new_events()))
        time.sleep(rng.uniform(0, longest_s))
    assert training.stop(signal.SIGKILL) == -signal.SIGKILL, training.errors


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The report and the folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    training = Training("tiny_long", out, cache, "--json", str(out.parent / "report.json"))
    assert training.end() == 0, training.errors
    return json.loads((out.parent / "report.json").read_text()), out


def rows(out):
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(out)]


def test_killed_and_stopped_in_every_way_it_ends_with_the_same_bits(whole, cache, tmp_path):
    """Three kills -9 (one of them in the midst of a save), Ctrl-C in an evaluation, SIGTERM between steps."""
    report, whole_out = whole
    out = tmp_path / "run"
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)

    kill_at_a_random_time(Training("tiny_long", out, cache), rng)
    training = Training("tiny_long", out, cache, failpoint="commit.before_rename:kill@2")
    assert training.end() == -signal.SIGKILL, training.errors

    training = Training("tiny_long", out, cache, "--faults.evaluate-s", "600")
    training.wait_for(lambda: {"resumed", "started"} & set(training.new_events()))
    assert training.stop(signal.SIGINT) == 130, training.errors
    assert training.new_events()[-1] == "stopped" or "nothing" in training.errors

    kill_at_a_random_time(Training("tiny_long", out, cache), rng)
    training = Training("tiny_long", out, cache)
    # Steps have been done then, whatever the kills before left.
    training.wait_for(lambda: "saved" in training.new_events())
    assert training.stop(signal.SIGTERM) == 42, training.errors
    assert "is saved; the same command goes on" in training.errors

    training = Training("tiny_long", out, cache, "--json", str(tmp_path / "report.json"))
    assert training.end() == 0, training.errors
    ours = json.loads((tmp_path / "report.json").read_text())
    assert (ours["state_hash"], ours["best"]) == (report["state_hash"], report["best"])
    assert rows(out) == rows(whole_out)
    assert (out / "model/model.json").read_bytes() == (whole_out / "model/model.json").read_bytes()
    assert [e["step"] for e in read_events(out) if e["event"] == "resumed"][-1] > 0


@pytest.mark.slow
def test_twenty_kills_at_random_times_change_no_bit(cache, tmp_path):
    longer = ("--training.num-steps", "600")
    whole = Training("tiny_long", tmp_path / "whole", cache, *longer)
    assert whole.end() == 0, whole.errors
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)
    for _ in range(20):
        kill_at_a_random_time(Training("tiny_long", tmp_path / "run", cache, *longer), rng)
    last = Training("tiny_long", tmp_path / "run", cache, *longer)
    assert last.end() == 0, last.errors
    hashes = [read_events(tmp_path / name)[-1]["state_hash"] for name in ("whole", "run")]
    assert hashes[0] == hashes[1]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


SPIKED = ("--mesh", "data=2", "--faults.spike-at", "30", "--training.num-steps", "40", "--faults.batch-s", "0.01")


@pytest.mark.slow
def test_killed_in_the_midst_of_a_rollback_it_ends_with_the_same_bits(cache, tmp_path):
    """Once the older state is read, when later checkpoints are gone, and when all is said; and in a save after it."""
    whole = Training("tiny_of_four", tmp_path / "whole", cache, *SPIKED)
    assert whole.end() == 0, whole.errors
    names = ("rollback.restored:kill", "rollback.removed:kill", "rollback.told:kill")
    for name in names:
        out = tmp_path / name.partition(":")[0]
        killed = Training("tiny_of_four", out, cache, *SPIKED, failpoint=name)
        assert killed.end() == -signal.SIGKILL, killed.errors
        assert "spike" in killed.new_events(), name
        # The spike comes again, as no checkpoint leaves it out yet; and a kill after that changes nothing either.
        again = Training("tiny_of_four", out, cache, *SPIKED, failpoint="commit.before_rename:kill@2")
        assert again.end() == -signal.SIGKILL, again.errors
        last = Training("tiny_of_four", out, cache, *SPIKED)
        assert last.end() == 0, last.errors
        hashes = [read_events(folder)[-1]["state_hash"] for folder in (tmp_path / "whole", out)]
        assert hashes[0] == hashes[1], name
        assert rows(out) == rows(tmp_path / "whole"), name
        told = [event for event in read_events(out) if event["event"] == "rolled_back"]
        assert {tuple(event["left_out"]) for event in told} == {(30,)}


@pytest.mark.slow
def test_a_fork_of_a_run_that_was_rolled_back_leaves_the_same_batches_out(cache, tmp_path):
    whole = Training("tiny_of_four", tmp_path / "whole", cache, *SPIKED)
    assert whole.end() == 0, whole.errors
    fork = Training("tiny_of_four", tmp_path / "fork", cache, *SPIKED, "--fork-from", f"{tmp_path / 'whole'}@36")
    assert fork.end() == 0, fork.errors
    hashes = [read_events(tmp_path / name)[-1]["state_hash"] for name in ("whole", "fork")]
    assert hashes[0] == hashes[1]


def test_a_long_compilation_does_not_keep_the_process(tmp_path):
    training = Training("tiny", tmp_path / "run", "off", "--faults.num-extra-ops", "3000")
    # The dev metric of step 0 comes just before the step is compiled.
    training.wait_for(lambda: "evaluated" in training.new_events())
    assert training.stop(signal.SIGTERM) == 42, training.errors
    assert "compiled" not in training.new_events()
    assert "training had not begun, so there was nothing to save" in training.errors


def test_a_second_ctrl_c_ends_at_once_and_harms_nothing(whole, cache, tmp_path):
    training = Training("tiny_long", tmp_path / "run", cache, "--faults.export-s", "600", "--training.num-steps", "8")
    training.wait_for(lambda: (tmp_path / "run/checkpoints/step_00000008").exists())
    training.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert training.stop(signal.SIGINT) == 130
    training = Training("tiny_long", tmp_path / "run", cache, "--training.num-steps", "8")
    assert training.end() == 0, training.errors
    assert "resumed step=8" in training.errors


def test_another_job_and_a_wrong_flag_are_refused_with_code_2(whole, cache):
    _, out = whole
    before = {p: p.read_bytes() for p in (out / "job.json", out / "events.jsonl")}
    training = Training("tiny_long", out, cache, "--training.seed", "4")
    assert training.end() == 2
    assert "training.seed: 0 -> 4" in training.errors
    assert "Traceback" not in training.errors
    assert {p: p.read_bytes() for p in before} == before


def run_here(*words):
    from launch.cli import main

    return main(["train", *words])


def test_flags_are_the_fields_of_the_job(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_here(f"{ROOT / RECIPES}:tiny", "--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--training.num-steps", "--operation.eval-every-steps", "--fork-from", "--init-from", "--mesh"):
        assert flag in text


@pytest.mark.parametrize(
    ("mesh", "grad_accum", "message"),
    [
        ("data=3@0-2", 1, "global_batch_size=16 must be divisible by data=3; use 15 or 18"),
        ("data=2,fsdp=3@0-5", 1, "global_batch_size=16 must be divisible by data*fsdp=6; use 12 or 18"),
        ("data=4@0-3", 8, "global_batch_size=16 must be divisible by data*grad_accum=32; use 32"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_before_anything_compiles(tmp_path, capsys, mesh, grad_accum, message):
    flags = ["--mesh", mesh, "--training.grad-accum", str(grad_accum)]
    with CompileCounter() as counter:
        code = run_here(f"{ROOT / RECIPES}:tiny", "--out", str(tmp_path / "run"), *flags)
    assert code == 2
    assert message in capsys.readouterr().err
    assert counter.num_programs == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--fork-from", "nowhere"], 2, "nowhere is not a run folder"),
        (["--init-from", "nowhere"], 3, "there is no such folder"),
        (["--init-from", "a", "--fork-from", "b"], 2, "give one of them"),
        (["--mesh", "data=3,tensr=2"], 2, "tensr"),
        (["--training.num-steps", "0"], 2, "num_steps=0"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path, capsys, flags, code, message):
    assert run_here(f"{ROOT / RECIPES}:tiny", "--out", str(tmp_path / "run"), *flags) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
