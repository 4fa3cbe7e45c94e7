"""What a run says of its own speed: measured, complete, and without what is no step."""

import time

import pytest

from jaxscale.errors import UsageError
from jaxscale.observe.metrics import read_metrics
from jaxscale.observe.phases import Phases
from jaxscale.train.speedometer import MEASURED, Speedometer
from jaxscale.train.step_flops import StepFlops
from tests.jaxscale.train import test_rollback, tiny
from tests.jaxscale.train.test_loop import events, go

FLOPS = StepFlops(model=600, hardware=800, chip="v5e", peak_per_s_per_device=1000.0)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_row_has_the_time_of_its_steps_alone():
    clock = Clock()
    phases = Phases(clock=clock)
    speed = Speedometer(phases, num_devices=2)
    for _ in range(2):
        with phases.enter("data"):
            clock.now += 0.1
        with phases.enter("step"):
            clock.now += 0.4
        speed.count(num_examples=8, num_tokens=64, flops=FLOPS)
    for phase, seconds in [("evaluate", 50.0), ("compile", 20.0), ("checkpoint", 0.25)]:
        with phases.enter(phase):
            clock.now += seconds
    row = speed.row(2, FLOPS)
    assert row["step_time_s"] == pytest.approx(0.5)
    assert row["examples_per_s"] == pytest.approx(16.0)
    assert row["tokens_per_s_per_device"] == pytest.approx(128 / 1.0 / 2)
    assert row["mfu"] == pytest.approx(1200 / 1.0 / 2 / 1000)
    assert row["hfu"] == pytest.approx(1600 / 1.0 / 2 / 1000)
    assert (row["data_wait_s"], row["checkpoint_blocked_s"]) == (pytest.approx(0.2), pytest.approx(0.25))
    assert row.keys() <= MEASURED


def test_steps_thrown_away_are_wasted():
    clock = Clock()
    phases = Phases(clock=clock)
    speed = Speedometer(phases, num_devices=1)
    for step in range(4):
        speed.mark(step)
        with phases.enter("step"):
            clock.now += 1.0
    speed.rolled_back(1)
    assert (speed.goodput().phases_s["step"], speed.goodput().wasted_s) == (1.0, 3.0)
    assert speed.goodput().total_s == 4.0


def test_the_ledger_of_a_run_sums_to_its_wall_time(tmp_path):
    started = time.monotonic()
    go(tiny.job(eval_every_steps=4, faults=tiny.Faults(evaluate_s=0.1, batch_s=0.02)), tmp_path / "run")
    wall_s = time.monotonic() - started
    (ledger,) = events(tmp_path / "run", "goodput")
    assert sum(ledger["seconds"].values()) == pytest.approx(ledger["total_s"], abs=0.01)
    assert 0.8 * wall_s < ledger["total_s"] <= wall_s
    assert ledger["seconds"]["evaluate"] >= 0.4
    assert ledger["seconds"]["compile"] > 0


def test_a_rollback_is_wasted_time_and_restoring(tmp_path):
    test_rollback.go(tmp_path / "run", huge=(9,))
    (ledger,) = events(tmp_path / "run", "goodput")
    assert ledger["seconds"]["wasted"] > 0
    assert ledger["seconds"]["restore"] > 0


def test_the_flops_of_a_step_are_those_of_its_contractions(tmp_path):
    out = tmp_path / "run"
    go(tiny.job(training={"grad_accum": 2}), out)
    compiled = events(out, "compiled")[0]
    assert compiled["attention"] == ["no attention of jaxscale.nn"]
    flops = compiled["flops"]
    # [16, 2, 4] @ [4, 8], whose gradient is of the weights alone, and [16, 2, 8] @ [8] with both gradients.
    first, second = 2 * 16 * 2 * 4 * 8, 2 * 16 * 2 * 8
    assert flops["model"] == 2 * first + 3 * second
    assert (flops["chip"], flops["peak_per_s_per_device"]) == ("", None)
    rows = [row for row in read_metrics(out) if "loss" in row]
    assert all(row["step_time_s"] > 0 and row["peak_host_memory_bytes"] > 1 << 20 for row in rows)


def test_checkpoints_by_time_come_besides_those_by_steps(tmp_path):
    out = tmp_path / "run"
    go(tiny.job(checkpoint_every_steps=100, checkpoint_every_s=1e-6, keep_last=20), out)
    assert [e["step"] for e in events(out, "saved")] == list(range(1, 13))
    with pytest.raises(UsageError, match=r"checkpoint_every_s=0\.0 must be above 0"):
        tiny.job(checkpoint_every_s=0.0)


@pytest.mark.slow
def test_the_profiler_records_a_window_of_steps(tmp_path):
    out = tmp_path / "run"
    go(tiny.job(profile="3:5"), out)
    assert list((out / "profile").rglob("*.xplane.pb"))
    with pytest.raises(UsageError, match="expected START:STOP"):
        tiny.job(profile="5:3")
