"""`launch local`: four real processes that share one mesh over loopback, and what befalls them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxscale.observe.metrics import read_metrics
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train.events import read_events
from jaxscale.train.speedometer import MEASURED
from launch.cli import main
from tests.jaxscale.store.file_systems import small_tmpfs

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "tests/jaxscale/train/tiny.py"
PATIENCE_S = 240.0

pytestmark = pytest.mark.multiprocess


JOBS = []


@pytest.fixture(autouse=True)
def none_is_left():
    """A test that fails leaves no process behind: the launcher's end is that of the others."""
    yield
    for job in JOBS:
        if job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
            job.end()
    JOBS.clear()


class Job:
    """`jaxscale launch local -n 4 -- train`, its lines read as they come."""

    def __init__(self, out, *flags, launch=(), num=4, recipe=f"{RECIPES}:tiny_of_four"):
        self.out = out
        self.report = out.parent.parent / f"{out.parent.name}-{out.name}.json"
        words = ["launch", "local", "-n", str(num), "--json", str(self.report), *launch]
        words += ["--", "train", recipe, "--out", str(out), "--devices", "1", *flags]
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        JOBS.append(self)
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self._reader.start()

    def wait_for(self, pattern, after=0):
        """The first match in a line, of those after so many."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for line in self.lines[after:]:
                if found := re.search(pattern, line):
                    return found
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.02)

    def pids(self):
        started = self.wait_for("started processes.*")[0]
        return [int(pid) for pid in re.findall(r"pid (\d+)", started)]

    def end(self):
        code = self.process.wait(timeout=PATIENCE_S)
        self._reader.join()
        self.process.stdout.close()
        return code

    def text(self):
        return "".join(self.lines)


def rows(out):
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(out)]


def logged(out):
    return [row for row in read_metrics(out) if "loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    job = Job(tmp_path_factory.mktemp("whole") / "run")
    assert job.end() == 0, job.text()
    return job


def test_four_processes_train_one_run(whole, tmp_path):
    """Their losses are those of one process with four devices, and each made its own rows only."""
    alone = ["train", f"{RECIPES}:tiny_of_four", "--out", str(tmp_path / "alone"), "--devices", "4"]
    done = subprocess.run([sys.executable, "-m", "launch.cli", *alone], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = (logged(out) for out in (whole.out, tmp_path / "alone"))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)
    assert json.loads(whole.report.read_text())["num_restarts"] == 0
    assert whole.text().count("[0] step=") == len(ours)
    assert "[1] step=" not in whole.text()
    assert all(row["step_time_spread_s"] >= 0 and row["slowest_process"] in range(4) for row in logged(whole.out))


def test_a_killed_process_and_a_stopped_one_are_named_and_the_run_ends_with_the_same_bits(whole, tmp_path):
    job = Job(tmp_path / "run", launch=("--backoff-s", "0.1"))
    first = job.pids()
    job.wait_for(r"\[0\] saved step=8")
    os.kill(first[2], signal.SIGKILL)
    job.wait_for("process 2 ended with code 137")
    after = len(job.lines)
    job.wait_for(r"\[0\] resumed step=", after)
    second = [int(p) for p in re.findall(r"pid (\d+)", job.wait_for("started processes.*", after)[0])]
    job.wait_for(r"\[0\] saved step=", len(job.lines))
    stopped_at = time.monotonic()
    os.kill(second[1], signal.SIGSTOP)
    found = job.wait_for(r"\[launch\] silent: process (\d) has given no sign of life for ([\d.]+) s \(step \d+, phase")
    named_after_s = time.monotonic() - stopped_at
    assert job.end() == 0, job.text()
    report = json.loads(job.report.read_text())
    print(f"stopped process named after {named_after_s:.1f} s; restarts {report['num_restarts']}")
    assert found[1] == "1"
    # Three heartbeats of a second, the last of them up to one before it was stopped, and a look every quarter.
    assert named_after_s < 4.5
    assert "most recent call first" in job.text()
    assert report["num_restarts"] == 2
    assert [ending["code"] for ending in report["endings"]] == [137, 137, 0]
    assert [finding["rank"] for finding in report["findings"] if finding["kind"] == "silent"] == [1]
    assert rows(job.out) == rows(whole.out)
    assert read_events(job.out)[-1]["state_hash"] == read_events(whole.out)[-1]["state_hash"]


@pytest.mark.slow
def test_a_slow_process_a_spike_and_a_poisoned_batch_are_named_and_the_run_ends(tmp_path):
    faults = ("--faults.slow-process", "3", "--faults.spike-at", "30")
    nan = ("--faults.nan-from-step", "13", "--faults.nan-until-step", "15")
    job = Job(tmp_path / "run", *faults, *nan)
    assert job.end() == 0, job.text()
    assert re.search(r"\[launch\] slow: process 3 is slow: \d+% of the time it waits for its own data", job.text())
    events = read_events(job.out)
    assert [event["batch"] for event in events if event["event"] == "skipped"] == [13, 14]
    spike = next(event for event in events if event["event"] == "spike")
    assert (spike["step"], spike["batch"]) == (31, 30)
    rolled_back = next(event for event in events if event["event"] == "rolled_back")
    assert (rolled_back["step"], rolled_back["left_out"]) == (28, [30])
    assert events[-1]["event"] == "finished"
    assert json.loads(job.report.read_text())["num_restarts"] == 0
    # It makes its batches 0.4 s more slowly than the others. The first batches are made while the step compiles.
    steady = [row for row in logged(job.out) if row["step"] > 8]
    spreads = [row["step_time_spread_s"] for row in steady]
    print(f"spread {min(spreads):.3f} to {max(spreads):.3f} s in steps of {steady[-1]['step_time_s']:.3f} s")
    assert {row["slowest_process"] for row in steady} == {3}
    assert sum(spreads) / len(spreads) > 0.3
    assert "slowest_process=3" in job.text()


@pytest.mark.slow
def test_a_flipped_bit_in_the_newest_checkpoint_is_named_and_ends_the_job_with_5(tmp_path):
    short = ("--training.num-steps", "8")
    assert Job(tmp_path / "run", *short).end() == 0
    checkpoints = Checkpoints(tmp_path / "run/checkpoints")
    file = max(checkpoints.path(8).rglob("c/*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    job = Job(tmp_path / "run")
    assert job.end() == 5, job.text()
    assert "checkpoint 8 is damaged and no other is taken unasked; the others are 4" in job.text()
    assert "which a new start would not mend" in job.text()
    shutil.rmtree(checkpoints.path(8))
    again = Job(tmp_path / "run")
    assert again.end() == 0, again.text()
    assert "resumed step=4" in again.text()


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named_and_ends_the_job_with_4(whole, tmp_path):
    """In the midst of the run, by somebody else's file; with room again, the same command ends with the same bits."""
    with small_tmpfs(tmp_path / "disk", 8 << 20) as disk:
        job = Job(disk / "run")
        job.wait_for(r"\[0\] saved step=8")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        assert job.end() == 4, job.text()
        assert re.search(r"No space left on device|the disk is full|and .* has [\d,]+ free", job.text())
        assert json.loads(Path(job.report).read_text() or "{}").get("num_restarts", 0) == 0
        filler.unlink()
        assert 8 in Checkpoints(disk / "run/checkpoints").steps()
        again = Job(disk / "run")
        assert again.end() == 0, again.text()
        assert rows(disk / "run") == rows(whole.out)


@pytest.mark.slow
def test_sigterm_saves_once_and_the_next_launch_goes_on(whole, tmp_path):
    job = Job(tmp_path / "run")
    job.wait_for(r"\[0\] saved step=8")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 42, job.text()
    stopped = read_events(job.out)[-1]
    assert stopped["event"] == "stopped"
    assert Checkpoints(job.out / "checkpoints").latest() == stopped["step"]
    assert job.text().count(f"the state of step {stopped['step']} is saved") == 4
    again = Job(tmp_path / "run")
    assert again.end() == 0, again.text()
    assert rows(job.out) == rows(whole.out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n 2", "after -- must stand the verb that the processes do, one of train; there is none"),
        ("-n 2 -- embed --model x", "got 'embed'"),
        ("-n 0 -- train tiny --out x", "-n 0: there must be 1 process at least"),
        ("-n 2 --heartbeat-s 0 -- train tiny --out x", "heartbeat_s=0.0 must be above 0"),
    ],
)
def test_what_can_not_be_launched_is_said(words, message, capsys):
    assert main(["launch", "local", *words.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_refuses_is_not_tried_again(tmp_path):
    job = Job(tmp_path / "run", "--mesh", "data=3")
    assert job.end() == 2, job.text()
    assert "data=3" in job.text()
    assert json.loads(job.report.read_text())["num_restarts"] == 0
