"""A step of a run comes out the same again, rollbacks and all; one that does not is told apart."""

import pytest

from jaxscale.errors import UsageError
from jaxscale.observe.metrics import METRICS_FILE
from jaxscale.train.replay import replay
from launch.cli import main
from tests.jaxscale.train import test_rollback, tiny
from tests.jaxscale.train.test_loop import go


def test_every_step_comes_out_the_same(tmp_path):
    job, out = tiny.job(mesh="data=4@0-3", log_every_steps=1), tmp_path / "run"
    go(job, out)
    for step, start in [(1, 0), (3, 0), (9, 8), (12, 8)]:
        found = replay(job.objective(), job.training, job.operation, out, step)
        assert (found.step, found.batch, found.from_step) == (step, step - 1, start)
        assert found.differences == []
        assert {"loss", "grad_norm"} <= set(found.compared)
        assert ("state" in found.compared) == (step == 12)


def test_what_differs_is_named(tmp_path):
    job, out = tiny.job(log_every_steps=1), tmp_path / "run"
    go(job, out)
    rows = (out / METRICS_FILE).read_text().splitlines()
    rows[9] = rows[9].replace('"grad_norm": ', '"grad_norm": 1')
    (out / METRICS_FILE).write_text("\n".join(rows) + "\n")
    found = replay(job.objective(), job.training, job.operation, out, 10)
    assert len(found.differences) == 1
    assert found.differences[0].startswith("grad_norm: the run wrote 1")


def test_a_step_before_a_spike_that_came_later_leaves_its_batches_out_too(tmp_path):
    out = tmp_path / "run"
    test_rollback.go(out, huge=(9,))
    job = tiny.job(num_steps=16, training={"spikes": test_rollback.SPIKES})
    objective = test_rollback.Spiky(objective=job.objective(), huge=(9,), seen=[])
    found = replay(objective, job.training, job.operation, out, 16)
    assert found.batch == 18  # batches 8, 9 and 10 were left out
    assert found.sample_ids == list(range(18 * 16, 19 * 16))
    assert found.differences == []


def test_a_step_that_was_not_done_is_refused(tmp_path):
    job, out = tiny.job(), tmp_path / "run"
    go(job, out)
    with pytest.raises(UsageError, match="has done 12 steps; name one of 1 to 12"):
        replay(job.objective(), job.training, job.operation, out, 13)


def test_the_verb_makes_the_job_again_from_the_runs_own_command(tmp_path, capsys):
    out = str(tmp_path / "run")
    recipe = f"{tiny.__file__}:tiny"
    assert main(["train", recipe, "--out", out, "--operation.log-every-steps", "1"]) == 0
    assert main(["replay", out, "--step", "6"]) == 0
    assert "run twice with equal bits; equal to what the run wrote: abs_error, grad_norm" in capsys.readouterr().out
    assert main(["replay", out, "--step", "99"]) == 2
