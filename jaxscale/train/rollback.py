"""Rolling back: what a loss spike makes of a run's progress, and which checkpoint it goes back to."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from jaxscale.errors import DivergedError
from jaxscale.store.failpoints import failpoint
from jaxscale.train.agreement import agreed_step, wait_for_all
from jaxscale.train.data_order import DataOrder
from jaxscale.train.objective import SaysSamples
from jaxscale.train.resume import Progress
from jaxscale.train.spikes import SpikeConfig, spike_score, with_loss
from jaxscale.train.start import Setup, first_state, restore
from jaxscale.train.state import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikedStep:
    """A step whose loss was a spike.

    Attributes:
      step: steps done once it was.
      number: of its batch.
      loss: of that batch.
      z_score: see `jaxscale.train.spikes.robust_z_score`.
    """

    step: int
    number: int
    loss: float
    z_score: float


class LossSpike(Exception):
    """Raised between two steps where a metric that has arrived tells of a spike; caught by the loop itself."""

    def __init__(self, spiked: SpikedStep) -> None:
        super().__init__(f"step {spiked.step}: loss {spiked.loss} has a z-score of {spiked.z_score}")
        self.spiked = spiked


def step_before(spiked: SpikedStep, config: SpikeConfig, steps: Sequence[int]) -> int | None:
    """The newest of `steps` at which no batch that is to be left out was trained on; None where there is none.

    >>> spiked = SpikedStep(step=9, number=8, loss=7.0, z_score=20.0)
    >>> step_before(spiked, SpikeConfig(), [4, 8, 12]), step_before(spiked, SpikeConfig(num_batches_before=1), [4, 8])
    (8, 4)
    """
    last = spiked.step - 1 - config.num_batches_before
    return max((step for step in steps if step <= last), default=None)


def left_out(spiked: SpikedStep, config: SpikeConfig, saved: Progress) -> tuple[int, ...]:
    """The batch numbers that a rollback leaves out: the spike's own, and as many around it as the job says.

    They depend on the spike and on what was left out before, not on the checkpoint that is gone back to.

    Args:
      spiked: the spike.
      config: how many.
      saved: the progress that is gone back to.
    """
    num_redone = spiked.step - saved.step
    numbers = itertools.islice(saved.order.numbers(), num_redone + config.num_batches_after)
    return tuple(numbers)[max(num_redone - 1 - config.num_batches_before, 0) :]


def rolled_back(saved: Progress, now: Progress, numbers: Sequence[int]) -> Progress:
    """The progress that the run goes on with.

    Args:
      saved: the one that is gone back to.
      now: the one at the spike; its rollbacks are counted on.
      numbers: of the batches to leave out.
    """
    return dataclasses.replace(
        now,
        step=saved.step,
        last_evaluated=saved.last_evaluated,
        best=saved.best,
        order=saved.order.without(numbers),
        recent_losses=saved.recent_losses,
        num_rollbacks=now.num_rollbacks + 1,
    )


def taken(config: SpikeConfig, progress: Progress, step: int, number: int, loss: float) -> Progress:
    """The progress with the loss of a step in its window.

    Raises:
      LossSpike: it is a spike.
    """
    z_score = spike_score(loss, progress.recent_losses, config)
    if z_score is not None:
        raise LossSpike(SpikedStep(step=step, number=number, loss=loss, z_score=z_score))
    return dataclasses.replace(progress, recent_losses=with_loss(progress.recent_losses, loss, config))


def check_rollback(setup: Setup, spiked: SpikedStep, now: Progress) -> int | None:
    """Writes the audit line of a spike: its step, batch, samples, loss and z-score.

    Returns:
      The step of the checkpoint to go back to; None for the run's beginning.

    Raises:
      DivergedError: the run was rolled back as often as its job allows.
    """
    config = setup.identity.spikes or SpikeConfig()
    back_to = agreed_step(step_before(spiked, config, setup.checkpoints.steps()))
    samples = setup.objective.sample_ids(spiked.number).tolist() if isinstance(setup.objective, SaysSamples) else None
    z_score = spiked.z_score if math.isfinite(spiked.z_score) else str(spiked.z_score)
    setup.folder.events.write(
        "spike", step=spiked.step, batch=spiked.number, loss=spiked.loss, z_score=z_score, sample_ids=samples
    )
    if now.num_rollbacks >= config.max_rollbacks:
        setup.folder.events.write("diverged", step=spiked.step)
        raise DivergedError(
            f"step {spiked.step}: its loss, {spiked.loss:.5g} on batch {spiked.number}, is a spike after "
            f"{config.max_rollbacks} others (spikes.max_rollbacks); use a smaller learning rate or a longer warm-up"
        )
    return back_to


def go_back(setup: Setup, spiked: SpikedStep, now: Progress, step: int | None) -> tuple[State, Progress]:
    """The state and progress before a spike; the checkpoints after it are removed, as their batches may be left out.

    Args:
      setup: of the run.
      spiked: the spike.
      now: the progress at the spike.
      step: of the checkpoint to go back to; None for the run's beginning.
    """
    if step is None:
        state = first_state(setup.objective, setup.identity, setup.placement)
        saved = dataclasses.replace(
            now, step=0, last_evaluated=None, best=None, order=DataOrder(), recent_losses=(), num_rollbacks=0
        )
    else:
        state, saved = restore(setup.checkpoints, step, setup.placement)
    failpoint("rollback.restored")
    for later in setup.checkpoints.steps():
        if step is None or later > step:
            setup.checkpoints.remove(later)
    wait_for_all("later checkpoints are gone")
    failpoint("rollback.removed")
    # What earlier rollbacks left out stays out, where this one goes back further than they did.
    saved = dataclasses.replace(saved, order=saved.order.without(now.order.skipped))
    numbers = left_out(spiked, setup.identity.spikes or SpikeConfig(), saved)
    setup.folder.events.write("rolled_back", step=saved.step, left_out=list(numbers))
    failpoint("rollback.told")
    return state, rolled_back(saved, now, numbers)
