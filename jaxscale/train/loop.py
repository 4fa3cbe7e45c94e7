"""Training a run from where it stands to its end: the folder claimed, the arrays placed, the host loop run."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.observe.heartbeat import Heartbeat
from jaxscale.observe.metrics import MetricsWriter, NoMetrics
from jaxscale.observe.phases import Phases
from jaxscale.observe.profile import Profiler, ProfileWindow
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.store.processes import is_primary
from jaxscale.train import compile_cache
from jaxscale.train.host_loop import HostLoop, Instruments, nothing_to_save
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.objective import NeedsOneProcess, Objective
from jaxscale.train.placement import place
from jaxscale.train.result import Best, TrainResult
from jaxscale.train.resume import Fork
from jaxscale.train.run_folder import RunFolder
from jaxscale.train.signals import StopSignals
from jaxscale.train.speedometer import Speedometer
from jaxscale.train.start import Setup, begin


def train(
    objective: Objective,
    identity: TrainingIdentity,
    operation: Operation,
    out: Path,
    *,
    fork: Fork | None = None,
    stop: StopSignals | None = None,
    command: Sequence[str] = (),
    heartbeat: Heartbeat | None = None,
) -> TrainResult:
    """Trains in a run folder until the job's last step, from where the folder's last checkpoint left off.

    Several processes of one job (`jaxscale.mesh.initialize_processes`) call it alike, with one folder that all see. The
    first of them writes there; each makes the rows of a batch that its devices hold, and saves their shards.

    Args:
      objective: what is trained.
      identity: what the run is, as far as the loop uses it.
      operation: how it is operated.
      out: the run folder; made where there is none.
      fork: the run whose state a new run begins with.
      stop: the caller's signals, where it caught them before; else they are caught from here on.
      command: the words of the command line, to be kept in the run folder; empty where there was none.
      heartbeat: of this process, where something watches it.

    Returns:
      What the run has come to.

    Raises:
      Preempted: SIGTERM came; the state is saved.
      Interrupted: Ctrl-C came; the state is saved.
      DivergedError: too many steps in a row were not finite.
      UsageError: the folder belongs to another job, or the job does not fit the mesh.
      MachineError: the folder is in use, or the disk is too small.
    """
    phases, writes = Phases(), is_primary()
    if heartbeat is not None:
        heartbeat.follow(phases)
    with contextlib.ExitStack() as stack:
        stop = stop if stop is not None else stack.enter_context(StopSignals())
        with stop.hold(nothing_to_save):
            folder = stack.enter_context(RunFolder(out, writes=writes))
            job, job_changes = folder.claim(objective.identity, operation, fork, command)
            done = folder.finished(identity.num_steps)
            if done is not None:
                return _finished_already(folder, done)
            if jax.process_count() > 1 and isinstance(objective, NeedsOneProcess):
                raise UsageError(f"num_processes={jax.process_count()} must be 1: {objective.needs_one_process}")
            mesh = mesh_from_text(operation.mesh)
            stack.enter_context(compile_cache.enabled(operation.compile_cache, mesh))
            setup = Setup(
                objective=objective,
                identity=identity,
                operation=operation,
                placement=place(objective, identity, mesh, operation.gather_weights),
                folder=folder,
                checkpoints=Checkpoints(
                    folder.checkpoints, keep_last=operation.keep_last, keep_every=operation.keep_every_steps
                ),
                job=job,
                job_changes=job_changes,
            )
            stack.callback(setup.checkpoints.close)
            speed = Speedometer(phases, mesh.size)
            with phases.enter("restore" if setup.checkpoints.latest() is not None else "init"):
                state, progress = begin(setup)
        writer: MetricsWriter | NoMetrics = NoMetrics()
        if writes:
            writer = MetricsWriter(folder.path, num_steps=identity.num_steps, tensorboard=operation.tensorboard)
        stack.enter_context(writer)
        writer.truncate_after(progress.step)
        window = ProfileWindow.parse(operation.profile) if operation.profile else None
        profiler = Profiler(window if writes else None, folder.path / "profile")
        stack.callback(profiler.close)
        phases.become("idle")
        return HostLoop(setup, state, progress, Instruments(writer, phases, speed, profiler, heartbeat), stop).run()


def _finished_already(folder: RunFolder, done: dict[str, Any]) -> TrainResult:
    print(
        f"{folder.path}: this run finished at step {done['step']}; nothing to do. "
        "A larger --training.num-steps makes it longer",
        file=sys.stderr,
    )
    best = None if done["best"] is None else typed_json.decode(Best, done["best"], f"{folder.path}: event finished")
    return TrainResult(
        step=done["step"], state_hash=done["state_hash"], best=best, model=str(folder.model), trained=False
    )
