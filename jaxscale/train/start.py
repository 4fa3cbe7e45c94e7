"""How a run begins: with fresh or given parameters, where its last checkpoint left off, or where another run was."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from jaxscale.errors import DataError
from jaxscale.mesh import spec_of
from jaxscale.observe.environment import differences, snapshot
from jaxscale.store import disk
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train.data_order import DataOrder
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.objective import Objective, Params
from jaxscale.train.placement import Placement
from jaxscale.train.randomness import named_key
from jaxscale.train.resume import Change, Progress, changes, past_sha256
from jaxscale.train.run_folder import CHECKPOINTS, JobFile, Origin, RunFolder, read_job
from jaxscale.train.state import State, place_new_state, place_params

# The state, its progress, and the event to write.
Beginning = tuple[State, Progress, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a run needs besides its state; nothing of it changes while the run goes on."""

    objective: Objective
    identity: TrainingIdentity
    operation: Operation
    placement: Placement
    folder: RunFolder
    checkpoints: Checkpoints
    job: JobFile
    # Since the last start in this folder.
    job_changes: list[Change]


def begin(setup: Setup) -> tuple[State, Progress]:
    """The state that the loop begins with and the progress that belongs to it.

    Only once both are there is the folder written: its job, environment and plan, and the event that says how the
    run began.

    Raises:
      VerificationError: the checkpoint is damaged.
      DataError: the checkpoint or the starting parameters do not fit the job.
      MachineError: the disk has no room for the checkpoints to come.
    """
    now = Progress(
        step=0,
        last_evaluated=None,
        best=None,
        environment=snapshot(),
        mesh=str(spec_of(setup.placement.mesh)),
        past_sha256=past_sha256(setup.job.identity),
        order=DataOrder(),
        gather_weights=setup.operation.gather_weights,
    )
    require_space(setup)
    latest = setup.checkpoints.latest()
    if latest is not None:
        state, progress, event = _resume(setup, latest, now)
    elif setup.job.forked_from is not None:
        state, progress, event = _fork(setup, setup.job.forked_from, now)
    else:
        identity_sha256 = setup.job.identity_sha256
        state, progress = first_state(setup.objective, setup.identity, setup.placement), now
        event = {"event": "started", "step": 0, "mesh": now.mesh, "identity_sha256": identity_sha256}
    setup.folder.write_job(setup.job)
    setup.folder.write_json("environment.json", now.environment)
    setup.folder.write_json("plan.json", setup.placement.plan.to_json())
    setup.folder.events.write(**event)
    return state, progress


def restore(checkpoints: Checkpoints, step: int, placement: Placement) -> tuple[State, Progress]:
    """A checkpoint, every byte of it verified, on the mesh at hand and as that mesh stores it.

    Checkpoints hold leaves in their logical order, whatever the mesh that wrote them.

    Raises:
      VerificationError: it is damaged.
      DataError: its arrays are not those of this job.
    """
    state, metadata = checkpoints.restore(step, placement.state, placement.state_shardings, check="full")
    return placement.to_stored(state), Progress.from_json(metadata, f"{checkpoints.directory}, step {step}")


def state_bytes(placement: Placement) -> int:
    """The size of the state, in bytes, all devices together."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(placement.state))


def require_space(setup: Setup) -> None:
    """Refuses a run whose checkpoints and exported model will not fit on the disk, before its first step.

    Raises:
      MachineError: naming what is needed and what is free.
    """
    operation, num_steps = setup.operation, setup.identity.num_steps
    # Those kept, the best one, and the one that is written before an older one may go.
    num_checkpoints = operation.keep_last + bool(operation.best_metric) + 1
    if operation.keep_every_steps is not None:
        num_checkpoints += num_steps // operation.keep_every_steps
    num_checkpoints = max(num_checkpoints - len(setup.checkpoints.steps()), 1)
    params = setup.placement.state["params"]
    model_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    needed = num_checkpoints * state_bytes(setup.placement) + model_bytes
    disk.require_free(setup.folder.path, needed, f"{num_checkpoints} checkpoints and a model of this run")


def _resume(setup: Setup, step: int, now: Progress) -> Beginning:
    state, saved = restore(setup.checkpoints, step, setup.placement)
    if saved.past_sha256 != now.past_sha256:
        raise DataError(f"{setup.folder.checkpoints}: the checkpoint of step {step} belongs to another job")
    changed = _environment_changes(saved, now)
    progress = dataclasses.replace(
        now,
        step=step,
        last_evaluated=saved.last_evaluated,
        best=saved.best,
        order=saved.order,
        recent_losses=saved.recent_losses,
        num_rollbacks=saved.num_rollbacks,
    )
    event = {
        "event": "resumed",
        "step": step,
        "bitwise": not changed,
        "environment_changes": changed,
        "job_changes": _lines(setup.job_changes),
    }
    return state, progress, event


def _fork(setup: Setup, origin: Origin, now: Progress) -> Beginning:
    state, saved = restore(Checkpoints(Path(origin.run) / CHECKPOINTS), origin.step, setup.placement)
    event = {
        "event": "forked",
        "step": origin.step,
        "run": origin.run,
        "environment_changes": _environment_changes(saved, now),
        "job_changes": _lines(changes(read_job(Path(origin.run)).identity, setup.job.identity)),
    }
    # The other run's best was chosen by its own job: this one's is chosen anew.
    return state, dataclasses.replace(now, step=origin.step, order=saved.order), event


def first_state(objective: Objective, identity: TrainingIdentity, placement: Placement) -> State:
    """The state before the first step, of fresh or given parameters."""
    optimizer = identity.optimizer.transformation()
    given = objective.starting_params
    if given is None:
        key = named_key(identity.seed, "params")
        make = functools.partial(objective.init_params, key)
        return place_new_state(make, optimizer, placement.state_shardings, placement.layouts)
    _check_params(given, placement.state["params"])
    return place_params(given, optimizer, placement.state_shardings, placement.layouts)


def _check_params(given: Params, expected: Params) -> None:
    """Refuses starting parameters that are not, leaf by leaf, of the shapes and dtypes that the objective makes."""
    found, wanted = (_described(tree) for tree in (given, expected))
    wrong = [
        f"{path}: got {found.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}"
        for path in sorted(found.keys() | wanted.keys())
        if found.get(path) != wanted.get(path)
    ]
    if wrong:
        raise DataError("the starting parameters do not fit this job:\n  " + "\n  ".join(wrong[:8]))


def _described(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _environment_changes(saved: Progress, now: Progress) -> list[str]:
    ours = [
        f"{name}: was {getattr(saved, name)}, is {getattr(now, name)}"
        for name in ("mesh", "gather_weights")
        if getattr(saved, name) != getattr(now, name)
    ]
    return ours + differences(saved.environment, now.environment)


def _lines(found: list[Change]) -> list[str]:
    return [str(change) for change in found]
