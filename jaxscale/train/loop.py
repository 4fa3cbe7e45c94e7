"""The host loop: batches in, steps dispatched, metrics out, checkpoints between; every decision at a step boundary.

What happens at the boundary after step n depends on n, on what the last checkpoint said and on the job, never on what
happened in this process before: so a run killed anywhere and started again does what the unbroken one does.
"""

import collections
import contextlib
import dataclasses
import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxscale import typed_json
from jaxscale.errors import DivergedError, UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.observe.metrics import METRICS_FILE, MetricsWriter, read_metrics
from jaxscale.store import disk
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train import compile_cache
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.objective import Objective
from jaxscale.train.placement import place
from jaxscale.train.prefetch import Prefetcher
from jaxscale.train.programs import StepPrograms
from jaxscale.train.resume import Best, Fork, Progress
from jaxscale.train.rollback import LossSpike, SpikedStep, check_rollback, go_back, taken
from jaxscale.train.run_folder import RunFolder
from jaxscale.train.signals import StopSignals
from jaxscale.train.start import Setup, begin
from jaxscale.train.state import State, host_value, state_hash
from jaxscale.train.step import Metrics, make_step

# Steps dispatched ahead of the one whose metrics are read: enough to keep the devices busy.
_MAX_STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run has come to; also the values of its `finished` event."""

    step: int
    # SHA-256 of the final state: parameters, optimizer state, counters.
    state_hash: str
    # The dev metric that chose the exported parameters; None: they are the final ones.
    best: Best | None
    # Where the model is.
    model: str
    # False where the run was finished already and nothing was done.
    trained: bool


def train(
    objective: Objective,
    identity: TrainingIdentity,
    operation: Operation,
    out: Path,
    *,
    fork: Fork | None = None,
    stop: StopSignals | None = None,
) -> TrainResult:
    """Trains in a run folder until the job's last step, from where the folder's last checkpoint left off.

    Args:
      objective: what is trained.
      identity: what the run is, as far as the loop uses it.
      operation: how it is operated.
      out: the run folder; made where there is none.
      fork: the run whose state a new run begins with.
      stop: the caller's signals, where it caught them before; else they are caught from here on.

    Returns:
      What the run has come to.

    Raises:
      Preempted: SIGTERM came; the state is saved.
      Interrupted: Ctrl-C came; the state is saved.
      DivergedError: too many steps in a row were not finite.
      UsageError: the folder belongs to another job, or the job does not fit the mesh.
      MachineError: the folder is in use, or the disk is too small.
    """
    with contextlib.ExitStack() as stack:
        stop = stop if stop is not None else stack.enter_context(StopSignals())
        with stop.hold(_nothing_to_save):
            folder = stack.enter_context(RunFolder(out))
            job, job_changes = folder.claim(objective.identity, operation, fork)
            done = folder.finished(identity.num_steps)
            if done is not None:
                return _finished_already(folder, done)
            if jax.process_count() > 1:
                raise UsageError(
                    f"num_processes={jax.process_count()}: a run is trained by one process so far; give it all devices"
                )
            mesh = mesh_from_text(operation.mesh)
            stack.enter_context(compile_cache.enabled(operation.compile_cache, mesh))
            setup = Setup(
                objective=objective,
                identity=identity,
                operation=operation,
                placement=place(objective, identity, mesh),
                folder=folder,
                checkpoints=Checkpoints(
                    folder.checkpoints, keep_last=operation.keep_last, keep_every=operation.keep_every_steps
                ),
                job=job,
                job_changes=job_changes,
            )
            stack.callback(setup.checkpoints.close)
            state, progress = begin(setup)
        writer = stack.enter_context(
            MetricsWriter(folder.path, num_steps=identity.num_steps, tensorboard=operation.tensorboard)
        )
        writer.truncate_after(progress.step)
        return _Loop(setup, state, progress, writer, stop).run()


class _Loop:
    """The moving parts of a run: its state, its progress, and the metrics still on their way from the devices."""

    def __init__(
        self, setup: Setup, state: State, progress: Progress, writer: MetricsWriter, stop: StopSignals
    ) -> None:
        self._setup, self._writer, self._stop = setup, writer, stop
        # As the step takes it; and in the logical order, made where something but the step asks for it.
        self._state = state
        self._logical_state: State | None = None
        self._progress = progress
        self._first_step = progress.step
        self._saved_step = setup.checkpoints.latest()
        self._saving_step: int | None = None
        # Steps done, the batch's number, and what the step told.
        self._pending: collections.deque[tuple[int, int, Metrics]] = collections.deque()
        self._last_row = (progress.step, time.monotonic())
        self._programs = StepPrograms(
            make_step(setup.placement.loss, setup.identity, setup.placement.slices),
            state_shardings=setup.placement.state_shardings,
            batch_shardings=setup.placement.batch_shardings,
            metrics_sharding=setup.placement.metrics_sharding,
        )

    def run(self) -> TrainResult:
        while not self._run_on():
            pass
        return self._finish()

    def _run_on(self) -> bool:
        """Steps to the last one, or rolls back from a loss spike; whether it was the last one."""
        num_steps = self._setup.identity.num_steps
        numbers = itertools.islice(self._progress.order.numbers(), num_steps - self._progress.step)
        batches = Prefetcher(self._setup.objective.batch, self._setup.placement.put_batch, numbers=numbers)
        try:
            with batches:
                self._boundary()
                while self._progress.step < num_steps:
                    self._step(batches)
                    self._boundary()
        except LossSpike as spike:
            self._roll_back(spike.spiked)
            return False
        return True

    def _roll_back(self, spiked: SpikedStep) -> None:
        """Goes back to before a spike, to go on without its batch.

        A kill in here is made good by rolling back again: the spike comes again until a checkpoint leaves it out.
        """
        setup = self._setup
        self._pending.clear()
        self._settle()
        step = check_rollback(setup, spiked, self._progress)
        self._state, self._logical_state = {}, None  # its memory is that of the state to come
        with self._stop.hold(_nothing_to_save):
            self._state, self._progress = go_back(setup, spiked, self._progress, step)
        self._saved_step, self._first_step = step, self._progress.step
        self._writer.truncate_after(self._progress.step)
        self._last_row = (self._progress.step, time.monotonic())

    def _step(self, batches: Prefetcher) -> None:
        """Dispatches one step; none where the process is asked to stop before its batch is there."""
        number = next(self._progress.order.numbers())
        batch = batches.get(number, lambda: self._stop.requested)
        if batch is None:
            return
        if not self._programs.has(batch):
            self._read_metrics(leave=0)
            with self._stop.hold(self._save_held):
                compile_s, copied = self._programs.compile(self._state, batch)
            shapes = {name: str(leaf.shape) for name, leaf in batch.items()}
            self._setup.folder.events.write("compiled", step=self._progress.step, compile_s=compile_s, shapes=shapes)
            for array in copied:
                self._setup.folder.events.write("copied_whole", step=self._progress.step, array=str(array))
            if self._stop.requested:
                return
        self._logical_state = None
        self._state, metrics = self._programs.run(self._state, batch)
        self._progress = dataclasses.replace(
            self._progress, step=self._progress.step + 1, order=self._progress.order.advanced()
        )
        self._pending.append((self._progress.step, number, metrics))
        self._read_metrics(leave=_MAX_STEPS_IN_FLIGHT)

    def _boundary(self) -> None:
        """Between two steps: stops where asked to, computes the dev metric and saves where due."""
        self._stop_if_asked()
        if self._evaluation_due():
            self._evaluate()
            self._stop_if_asked()
        if self._save_due():
            self._save()

    def _evaluation_due(self) -> bool:
        step, every = self._progress.step, self._setup.operation.eval_every_steps
        if self._progress.last_evaluated == step:
            return False
        # Before the first step too: what training has to beat, and a misspelt metric is found at once.
        return step == self._setup.identity.num_steps or (every is not None and step % every == 0)

    def _save_due(self) -> bool:
        step, best = self._progress.step, self._progress.best
        if self._saved_step == step:
            return False
        forked = self._setup.job.forked_from is not None and self._saved_step is None
        every = step > 0 and step % self._setup.operation.checkpoint_every_steps == 0
        is_best = best is not None and best.step == step
        return forked or every or is_best or step == self._setup.identity.num_steps

    def _evaluate(self) -> None:
        self._read_metrics(leave=0)
        step, started = self._progress.step, time.monotonic()
        # All of the state, and now: programs that move data must not be started by two threads at once, and the one
        # that watches the signals may have to save while this one evaluates.
        state = self._in_logical_order()
        with self._stop.hold(self._save_held):
            metrics = self._setup.objective.evaluate(state["params"], self._setup.placement.mesh)
        best = _better(self._setup.operation, self._progress.best, step, metrics)
        self._progress = dataclasses.replace(self._progress, last_evaluated=step, best=best)
        if metrics:
            if step != self._first_step or not self._has_dev_row(step):
                self._writer.write(step, {f"dev/{name}": value for name, value in metrics.items()}, show=False)
            self._setup.folder.events.write(
                "evaluated", step=step, metrics=metrics, best=best, evaluate_s=round(time.monotonic() - started, 3)
            )
        self._last_row = (step, time.monotonic())

    def _has_dev_row(self, step: int) -> bool:
        """Whether a process that was killed before it saved had written the dev metric of this step already."""
        rows = read_metrics(self._setup.folder.path)
        return any(row["step"] == step and name.startswith("dev/") for row in rows for name in row)

    def _save(self) -> None:
        """Starts a save; the next one, or the end, waits until it is committed."""
        self._settle()
        self._read_metrics(leave=0)
        disk.fsync(self._setup.folder.path / METRICS_FILE)
        self._setup.checkpoints.save_async(self._progress.step, self._in_logical_order(), self._progress.to_json())
        self._saved_step = self._saving_step = self._progress.step

    def _in_logical_order(self) -> State:
        """The state as checkpoints, evaluations, hashes and exports have it, the same on every mesh."""
        if self._logical_state is None:
            self._logical_state = self._setup.placement.to_logical(self._state)
        return self._logical_state

    def _settle(self) -> None:
        """Waits until the last save is committed; from then on the best step, if it is that one, is kept by its mark.

        The former best keeps its mark, and so its files, until then: after a kill the newest checkpoint always names a
        best one that is there.
        """
        checkpoints, best = self._setup.checkpoints, self._progress.best
        checkpoints.wait()
        if self._saving_step is not None:
            self._setup.folder.events.write("saved", step=self._saving_step)
            self._saving_step = None
        if best is not None and best.step in checkpoints.steps() and best.step != checkpoints.best():
            checkpoints.set_best(best.step)

    def _save_now(self) -> int:
        """Has the state of this boundary on disk when it returns; returns its step."""
        step = self._progress.step
        # Before the first step there is nothing that the same command would not make again.
        if step > 0 and self._saved_step != step:
            self._save()
        self._settle()
        return step

    def _save_held(self) -> str:
        """For a main thread that is held up: called from the thread that watches the signals."""
        step = self._save_now()
        self._setup.folder.events.write("stopped", step=step, reason=self._stop.reason)
        return _saved(step)

    def _stop_if_asked(self) -> None:
        if self._stop.requested:
            step = self._save_now()
            self._setup.folder.events.write("stopped", step=step, reason=self._stop.reason)
            raise self._stop.error(_saved(step))

    def _read_metrics(self, leave: int) -> None:
        """Reads the metrics of dispatched steps, oldest first, until `leave` of them are left."""
        while len(self._pending) > leave:
            step, number, metrics = self._pending.popleft()
            self._take_metrics(step, number, {name: value.item() for name, value in jax.device_get(metrics).items()})

    def _take_metrics(self, step: int, number: int, values: dict[str, Any]) -> None:
        in_a_row, limit = values["num_skipped_in_a_row"], self._setup.identity.max_skipped_in_a_row
        if in_a_row:
            shown = {name: str(values[name]) for name in ("loss", "grad_norm")}
            self._setup.folder.events.write("skipped", step=step, batch=number, in_a_row=in_a_row, **shown)
        if in_a_row >= limit:
            self._setup.folder.events.write("diverged", step=step)
            raise DivergedError(
                f"step {step}: the loss or its gradient was not finite {in_a_row} steps in a row "
                f"(max_skipped_in_a_row={limit}); the last good state is the checkpoint of step {self._saved_step}; "
                "use a smaller learning rate or a longer warm-up"
            )
        if self._setup.identity.spikes is not None:
            self._progress = taken(self._setup.identity.spikes, self._progress, step, number, values["loss"])
        if step == 1 or step % self._setup.operation.log_every_steps == 0:
            last_step, last_time = self._last_row
            self._last_row = (step, time.monotonic())
            steps_per_s = (step - last_step) / max(self._last_row[1] - last_time, 1e-9)
            examples_per_s = steps_per_s * self._setup.identity.global_batch_size
            self._writer.write(step, {"loss": values["loss"], **values, "examples_per_s": round(examples_per_s, 2)})
        else:
            self._writer.advance(step)

    def _finish(self) -> TrainResult:
        folder, best = self._setup.folder, self._progress.best
        with self._stop.hold(_nothing_to_save):
            self._settle()
            state = self._in_logical_order()
            final, params = state_hash(state), state["params"]
            if best is not None and best.step != self._progress.step:
                params = self._setup.checkpoints.restore(best.step, {"params": params})[0]["params"]
            self._setup.objective.export(jax.tree.map(host_value, params), folder.model)
            folder.events.write("finished", step=self._progress.step, state_hash=final, best=best)
        return TrainResult(step=self._progress.step, state_hash=final, best=best, model=str(folder.model), trained=True)


def _better(operation: Operation, old: Best | None, step: int, metrics: dict[str, float]) -> Best | None:
    """The best so far after an evaluation; a tie stays with the earlier step, and NaN is never the best.

    Raises:
      UsageError: the evaluation has no metric of the name that the job goes by.
    """
    name, mode = operation.best_metric, operation.best_mode
    if not name:
        return None
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none: the objective has no dev data"
        raise UsageError(f"best_metric={name!r}: the evaluation has no such metric; it has {known}")
    value = float(metrics[name])
    if math.isnan(value):
        return old
    # A best by another metric can't be compared with.
    if old is None or (old.metric, old.mode) != (name, mode):
        return Best(step=step, metric=name, mode=mode, value=value)
    improved = value > old.value if mode == "max" else value < old.value
    return dataclasses.replace(old, step=step, value=value) if improved else old


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


def _nothing_to_save() -> str:
    return "nothing was lost: all there is so far is on disk"


def _saved(step: int) -> str:
    return f"the state of step {step} is saved" if step else "training had not begun, so there was nothing to save"
