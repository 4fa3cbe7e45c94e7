"""One step of a run once more: the same bits as then, or what differs."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.observe.environment import differences, snapshot
from jaxscale.observe.metrics import read_metrics
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train.data_order import DataOrder
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.objective import Objective, SaysSamples
from jaxscale.train.placement import Placement, place
from jaxscale.train.programs import StepPrograms
from jaxscale.train.resume import check_identity
from jaxscale.train.run_folder import CHECKPOINTS, read_job
from jaxscale.train.speedometer import MEASURED
from jaxscale.train.start import first_state, restore
from jaxscale.train.state import State, state_hash
from jaxscale.train.step import make_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """A step that was run again, twice, from the same state.

    Attributes:
      step: steps done once it was.
      batch: the number of its batch.
      sample_ids: the samples of that batch, by their places in the data's order; None where the objective says none.
      from_step: of the checkpoint begun with; 0 for the run's beginning.
      metrics: what the step told.
      state_hash: of the state after it.
      differences: every metric or hash that is not what the run wrote, and of the two runs of the step what differs.
      compared: what the run had written of this step: names of metrics, and `state` where there is its checkpoint.
      environment_changes: since the run's last start; bits may differ for these.
    """

    step: int
    batch: int
    sample_ids: list[int] | None
    from_step: int
    metrics: dict[str, float]
    state_hash: str
    differences: list[str]
    compared: list[str]
    environment_changes: list[str]


def replay(objective: Objective, identity: TrainingIdentity, operation: Operation, run: Path, step: int) -> Replayed:
    """Runs the steps from the last checkpoint before `step` up to it, and it twice; the run folder is only read.

    Args:
      objective: what was trained, opened as for the run.
      identity: as of the run.
      operation: as of the run; its mesh is the one to run on.
      run: the run folder.
      step: the one to run again; 1 is the first.

    Raises:
      UsageError: the job is not the run's, the run has not come that far, or nothing before the step is left.
      VerificationError: a checkpoint is damaged.
    """
    job = read_job(run)
    check_identity(run, job.identity, objective.identity)
    checkpoints = Checkpoints(run / CHECKPOINTS)
    rows = read_metrics(run)
    last = max([*checkpoints.steps(), *(int(row["step"]) for row in rows)], default=0)
    if not 1 <= step <= last:
        raise UsageError(f"--step {step}: {run} has done {last} steps; name one of 1 to {last}")
    start = max((known for known in checkpoints.steps() if known < step), default=0)
    if start == 0 and job.forked_from is not None:
        raise UsageError(f"--step {step}: {run} was forked, and its checkpoints before that step are gone")
    placement = place(objective, identity, mesh_from_text(operation.mesh), operation.gather_weights)
    newest = checkpoints.latest()
    if start:
        state, progress = restore(checkpoints, start, placement)
        order = progress.order
    else:
        state, order = first_state(objective, identity, placement), DataOrder()
    if newest is not None:
        # What a rollback left out later was left out of the steps that the run kept.
        order = order.without(restore(checkpoints, newest, placement)[1].order.skipped)
    numbers = list(itertools.islice(order.numbers(), step - start))
    steps = _Steps(objective, identity, placement)
    for number in numbers[:-1]:
        state, _ = steps.run(state, number)
    twin = jax.tree.map(jnp.copy, state)
    after, metrics = steps.run(state, numbers[-1])
    again, metrics_again = steps.run(twin, numbers[-1])
    found = state_hash(placement.to_logical(after))
    recorded = _recorded(rows, checkpoints, step, placement)
    ours: dict[str, Any] = {**metrics, "state": found}
    return Replayed(
        step=step,
        batch=numbers[-1],
        sample_ids=objective.sample_ids(numbers[-1]).tolist() if isinstance(objective, SaysSamples) else None,
        from_step=start,
        metrics=metrics,
        state_hash=found,
        differences=[
            *_differing("the run wrote", recorded, ours),
            *_differing("the second time", {**metrics_again, "state": state_hash(placement.to_logical(again))}, ours),
        ],
        compared=sorted(recorded),
        environment_changes=_environment_changes(checkpoints, newest, placement),
    )


class _Steps:
    """The run's own step, on batches by number."""

    def __init__(self, objective: Objective, identity: TrainingIdentity, placement: Placement) -> None:
        self._objective, self._placement = objective, placement
        self._programs = StepPrograms(
            make_step(placement.loss, identity, placement.slices, placement.gathered),
            state_shardings=placement.state_shardings,
            batch_shardings=placement.batch_shardings,
            metrics_sharding=placement.metrics_sharding,
        )

    def run(self, state: State, number: int) -> tuple[State, dict[str, float]]:
        """The state after the step on batch `number`, and its metrics; the buffers of `state` are donated."""
        batch = self._placement.put_batch(self._objective.batch(number))
        if not self._programs.has(batch):
            self._programs.compile(state, batch)
        state, metrics = self._programs.run(state, batch)
        return state, {name: value.item() for name, value in jax.device_get(metrics).items()}


def _recorded(
    rows: list[dict[str, int | float]], checkpoints: Checkpoints, step: int, placement: Placement
) -> dict[str, Any]:
    """What the run wrote of a step, as far as two equal runs write the same."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["step"] == step:
            found |= {
                n: v for n, v in row.items() if n not in MEASURED | {"step", "tokens"} and not n.startswith("dev/")
            }
    if step in checkpoints.steps():
        found["state"] = state_hash(placement.to_logical(restore(checkpoints, step, placement)[0]))
    return found


def _differing(whose: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {whose} {value!r}, this time {ours.get(name)!r}"
        for name, value in sorted(theirs.items())
        # NaN is equal to itself here.
        if repr(value) != repr(ours.get(name))
    ]


def _environment_changes(checkpoints: Checkpoints, newest: int | None, placement: Placement) -> list[str]:
    if newest is None:
        return []
    return differences(restore(checkpoints, newest, placement)[1].environment, snapshot())
