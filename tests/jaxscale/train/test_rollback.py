"""A loss spike is rolled back from and its batches left out; killed on the way, the run ends in the same bits."""

import dataclasses

import numpy as np
import pytest

from jaxscale.errors import DivergedError
from jaxscale.observe.metrics import read_metrics
from jaxscale.train.loop import train
from jaxscale.train.signals import StopSignals
from jaxscale.train.spikes import SpikeConfig
from tests.jaxscale.train import tiny
from tests.jaxscale.train.test_loop import events

# The tiny loss is noisy: of 8 losses the spread is wide, and the planted spike is a million times the loss.
SPIKES = SpikeConfig(window=4, threshold=1000.0, num_batches_before=1, num_batches_after=1, max_rollbacks=2)


class Dead(BaseException):
    """As kill -9: nothing of the loop runs after it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spiky:
    """The tiny objective with batches whose loss is huge, and a batch at whose making the process dies."""

    objective: tiny.TinyObjective
    huge: tuple[int, ...]
    seen: list[int]
    dies_at_call: int | None = None

    def __getattr__(self, name):
        return getattr(self.objective, name)

    def sample_ids(self, number):
        return np.arange(number * 16, number * 16 + 16, dtype=np.int64)

    def batch(self, number, rows=slice(None)):
        if len(self.seen) == self.dies_at_call:
            raise Dead
        self.seen.append(number)
        batch = self.objective.batch(number, rows)
        return batch | {"scale": batch["scale"] * (1e6 if number in self.huge else 1)}


def go(out, huge, dies_at_call=None, spikes=SPIKES):
    job = tiny.job(num_steps=16, training={"spikes": spikes})
    objective = Spiky(objective=job.objective(), huge=huge, seen=[], dies_at_call=dies_at_call)
    with StopSignals(patience_s=600) as stop:
        return train(objective, job.training, job.operation, out, stop=stop)


def losses(out):
    return [(row["step"], row["loss"]) for row in read_metrics(out) if "loss" in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with a spike at batch 9, which its tenth step trains on."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, go(out, huge=(9,))


def test_the_spike_is_named_and_its_batches_are_left_out(whole):
    out, result = whole
    assert result.step == 16
    spike = events(out, "spike")
    assert [(e["step"], e["batch"]) for e in spike] == [(10, 9)]
    assert spike[0]["z_score"] > 1000
    assert spike[0]["sample_ids"] == list(range(144, 160))
    assert [(e["step"], e["left_out"]) for e in events(out, "rolled_back")] == [(8, [8, 9, 10])]
    assert [step for step, _ in losses(out)] == [1, 2, 4, 6, 8, 10, 12, 14, 16]
    assert max(loss for _, loss in losses(out)) < 100


@pytest.mark.parametrize("dies_at_call", [11, 14, 16])
def test_killed_around_a_rollback_the_run_ends_in_the_same_bits(whole, tmp_path, dies_at_call):
    out, result = whole
    with pytest.raises(Dead):
        go(tmp_path / "run", huge=(9,), dies_at_call=dies_at_call)
    assert go(tmp_path / "run", huge=(9,)).state_hash == result.state_hash
    assert losses(tmp_path / "run") == losses(out)


def test_too_many_spikes_are_a_divergence(tmp_path):
    with pytest.raises(DivergedError, match=r"step 8: .* on batch 15, is a spike after 2 others"):
        go(tmp_path / "run", huge=tuple(range(9, 40)), spikes=dataclasses.replace(SPIKES, num_batches_after=2))
    back = [(e["step"], e["left_out"]) for e in events(tmp_path / "run", "rolled_back")]
    assert back == [(8, [8, 9, 10, 11]), (4, [7, 12, 13, 14])]
