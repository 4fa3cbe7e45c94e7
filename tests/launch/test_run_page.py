"""The page of a training run: drawn from a real one, and from rows and events made up."""

import re

import pytest

from jaxscale.errors import DataError
from jaxscale.observe import sections
from jaxscale.observe.report import render
from jaxscale.train.loop import train
from launch.cli import main
from launch.run_page import run_report, write_run_page
from tests.jaxscale.train.tiny import Faults, job

PLAN = sections.Note(title="Plan", paragraphs=("no plan",))
IDENTITY = {"training": {"num_steps": 40}}


def row(step, **values):
    return {"step": step, "loss": 3.0 / step, "grad_norm": 1.0, "learning_rate": 0.1, "examples_per_s": 200.0, **values}


def page(rows, events):
    return re.sub(r"<[^>]+>", " ", render(run_report("a", IDENTITY, rows, events, PLAN)))


def goodput(**seconds):
    return {"event": "goodput", "total_s": sum(seconds.values()), "share": 0.5, "seconds": seconds}


def test_a_run_that_was_killed_rolled_back_and_stopped_says_so():
    events = [
        {"event": "started", "step": 0},
        {"event": "compiled", "step": 0, "compile_s": 2.5},
        {"event": "resumed", "step": 8, "bitwise": True, "environment_changes": []},
        {"event": "skipped", "step": 10, "batch": 9},
        {"event": "spike", "step": 13, "batch": 12, "loss": 71.0},
        {"event": "rolled_back", "step": 12, "left_out": [12]},
        goodput(step=30.0, init=5.0, wasted=5.0),
        {"event": "stopped", "step": 16, "reason": "preempted"},
        {"event": "resumed", "step": 16, "bitwise": False, "environment_changes": ["mesh: was data=1, is data=2"]},
        goodput(step=15.0, init=5.0, wasted=0.0),
        {"event": "finished", "step": 40},
    ]
    said = page([row(1), row(20), row(40, mfu=0.42)], events)
    for words in (
        "It is finished. 40 of 40 steps are in its metrics.",
        "Step 8: went on from the checkpoint (bit by bit).",
        "Step 16: went on from the checkpoint (mesh: was data=1, is data=2).",
        "Step 10: batch 9 was not finite and is left out of the parameters.",
        "Step 13: the loss of batch 12, 71, was a spike.",
        "Step 12: went back to here and left out the batches 12.",
        "Step 16: stopped (preempted).",
        "1 of them were killed and told nothing.",
        "42.0%",
        "75%",  # 45 of 60 seconds
    ):
        assert words in " ".join(said.split()), words
    whole = render(run_report("a", IDENTITY, [row(1), row(20), row(40)], events, PLAN))
    assert "rolled back at step 12." in whole  # the chart in words


def test_throughput_is_of_tokens_where_there_are_any():
    said = page([row(1, tokens_per_s_per_device=512.0)], [{"event": "started", "step": 0}])
    assert "tokens/s per device" in said
    assert "It is going on, or was killed." in said
    assert "none has yet" in said


def test_several_processes_are_apart_and_the_slowest_is_named():
    apart = [
        {"step_time_s": 0.5, "step_time_spread_s": 0.1 * n, "slowest_process": rank}
        for n, rank in ((1, 2), (3, 0), (4, 2))
    ]
    said = page(
        [row(step, **values) for step, values in zip((1, 20, 40), apart, strict=True)],
        [{"event": "started", "step": 0}],
    )
    assert "process 2 was the slowest in 2 of 3 rows" in " ".join(said.split())
    assert "apart: 0.1 at step 1, 0.4 at step 40" in said
    assert "processes were apart" not in page([row(1)], [{"event": "started", "step": 0}])


def test_the_page_of_a_real_run(tmp_path, capsys):
    nan = job(num_steps=12, faults=Faults(nan_from_step=5, nan_until_step=6))
    train(nan.objective(), nan.training, nan.operation, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    drawn = (tmp_path / "run/report.html").read_text()
    assert "Step 6: batch 5 was not finite" in drawn
    assert "hidden/w" in re.sub(r"<wbr>|<[^>]+>", "", drawn)
    assert "<svg" in drawn
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawn)


def test_a_run_without_a_step_is_refused(tmp_path):
    short = job(num_steps=2)
    train(short.objective(), short.training, short.operation, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no step is logged yet"):
        write_run_page(tmp_path / "run", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
