"""The host loop: batches in, steps dispatched, metrics out, checkpoints between; every decision at a step boundary.

What happens at the boundary after step n depends on n, on what the last checkpoint said and on the job, never on what
happened in this process before: so a run killed anywhere and started again does what the unbroken one does. (Only
`checkpoint_every_s` looks at a clock, and only to save more often.)
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import time
from typing import Any

import jax

from jaxscale.errors import DivergedError
from jaxscale.observe.heartbeat import Heartbeat
from jaxscale.observe.metrics import METRICS_FILE, MetricsWriter, NoMetrics, read_metrics
from jaxscale.observe.phases import Phases
from jaxscale.observe.profile import Profiler
from jaxscale.store import disk
from jaxscale.store.processes import is_primary
from jaxscale.train.agreement import Agreement, wait_for_all
from jaxscale.train.batch_shapes import bucket_of
from jaxscale.train.objective import SaysTokens
from jaxscale.train.prefetch import Prefetcher
from jaxscale.train.programs import StepPrograms
from jaxscale.train.result import TrainResult, better
from jaxscale.train.resume import Progress
from jaxscale.train.rollback import LossSpike, SpikedStep, check_rollback, go_back, taken
from jaxscale.train.signals import StopSignals
from jaxscale.train.speedometer import Speedometer
from jaxscale.train.start import Setup
from jaxscale.train.state import State, host_value, state_hash
from jaxscale.train.step import Metrics, make_step
from jaxscale.train.step_flops import StepFlops, step_flops

# Steps dispatched ahead of the one whose metrics are read: enough to keep the devices busy.
_MAX_STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Instruments:
    """What watches a run and changes nothing of it."""

    writer: MetricsWriter | NoMetrics
    phases: Phases
    speed: Speedometer
    profiler: Profiler
    heartbeat: Heartbeat | None = None


class HostLoop:
    """The moving parts of a run: its state, its progress, and the metrics still on their way from the devices."""

    def __init__(
        self, setup: Setup, state: State, progress: Progress, instruments: Instruments, stop: StopSignals
    ) -> None:
        self._setup, self._stop = setup, stop
        self._writer, self._phases = instruments.writer, instruments.phases
        self._speed, self._profiler = instruments.speed, instruments.profiler
        self._heartbeat = instruments.heartbeat
        self._is_alone, self._writes = jax.process_count() == 1, is_primary()
        self._agreement = Agreement(max_ahead=_MAX_STEPS_IN_FLIGHT)
        # As the step takes it; and in the logical order, made where something but the step asks for it.
        self._state = state
        self._logical_state: State | None = None
        self._progress = progress
        self._first_step = progress.step
        self._saved_step = setup.checkpoints.latest()
        self._saving_step: int | None = None
        # Steps done, the batch's number, and what the step told.
        self._pending: collections.deque[tuple[int, int, Metrics]] = collections.deque()
        # Of a step on the batches compiled for last.
        self._flops: StepFlops | None = None
        self._last_save = time.monotonic()
        self._speed.begin(progress.step)
        self._programs = StepPrograms(
            make_step(setup.placement.loss, setup.identity, setup.placement.slices, setup.placement.gathered),
            state_shardings=setup.placement.state_shardings,
            batch_shardings=setup.placement.batch_shardings,
            metrics_sharding=setup.placement.metrics_sharding,
        )

    def run(self) -> TrainResult:
        """Goes on to the last step, exports the model, and says what the run came to."""
        while not self._run_on():
            pass
        return self._finish()

    def _run_on(self) -> bool:
        """Steps to the last one, or rolls back from a loss spike; whether it was the last one."""
        num_steps = self._setup.identity.num_steps
        numbers = itertools.islice(self._progress.order.numbers(), num_steps - self._progress.step)
        batches = Prefetcher(self._load, numbers=numbers)
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

    def _load(self, number: int) -> dict[str, jax.Array]:
        make = functools.partial(self._setup.objective.batch, number)
        return self._setup.placement.load_batch(make, self._setup.identity.batch_sizes.size(number))

    def _roll_back(self, spiked: SpikedStep) -> None:
        """Goes back to before a spike, to go on without its batch.

        A kill in here is made good by rolling back again: the spike comes again until a checkpoint leaves it out.
        """
        setup = self._setup
        self._pending.clear()
        self._settle()
        step = check_rollback(setup, spiked, self._progress)
        self._state, self._logical_state = {}, None  # its memory is that of the state to come
        with self._stop.hold(nothing_to_save), self._phases.enter("restore"):
            self._state, self._progress = go_back(setup, spiked, self._progress, step)
        self._saved_step, self._first_step = step, self._progress.step
        self._writer.truncate_after(self._progress.step)
        self._speed.rolled_back(self._progress.step)

    def _step(self, batches: Prefetcher) -> None:
        """Dispatches one step; none where the process is asked to stop before its batch is there."""
        number = next(self._progress.order.numbers())
        with self._phases.enter("data"):
            # Several processes stop at a boundary that all of them have agreed on, and go on until then.
            batch = batches.get(number, lambda: self._is_alone and self._stop.requested)
        if batch is None:
            return
        if not self._programs.has(batch):
            self._read_metrics(leave=0)
            with self._phases.enter("compile"):
                self._compile(batch)
            if self._is_alone and self._stop.requested:
                return
        self._logical_state = None
        if self._is_logged(self._progress.step + 1):
            self._speed.before_logged(self._progress.step + 1)
        with self._phases.enter("step"):
            self._state, metrics = self._programs.run(self._state, batch)
        self._progress = dataclasses.replace(
            self._progress, step=self._progress.step + 1, order=self._progress.order.advanced()
        )
        self._pending.append((self._progress.step, number, metrics))
        self._read_metrics(leave=_MAX_STEPS_IN_FLIGHT)

    def _compile(self, batch: dict[str, jax.Array]) -> None:
        setup, step = self._setup, self._progress.step
        with self._holding():
            compile_s, copied = self._programs.compile(self._state, batch)
            params = setup.placement.state["params"]
            self._flops = step_flops(setup.objective.loss, setup.identity, params, batch)
        shapes = {name: str(leaf.shape) for name, leaf in batch.items()}
        setup.folder.events.write(
            "compiled",
            step=step,
            compile_s=compile_s,
            shapes=shapes,
            flops=self._flops,
            attention=setup.placement.attention[bucket_of(batch)],
        )
        for array in copied:
            setup.folder.events.write("copied_whole", step=step, array=str(array))

    def _holding(self) -> contextlib.AbstractContextManager[None]:
        """A phase of this process's main thread that may be long; several processes can't save out of it together."""
        if self._is_alone:
            return self._stop.hold(self._save_held)
        is_saved = self._progress.step == (self._saved_step or 0) and self._saving_step is None
        return self._stop.hold(nothing_to_save) if is_saved else contextlib.nullcontext()

    def _boundary(self) -> None:
        """Between two steps: stops where asked to, computes the dev metric and saves where due."""
        if self._heartbeat is not None:
            self._heartbeat.at_step(self._progress.step)
        self._agreement.next_boundary()
        if self._profiler.due(self._progress.step):
            self._read_metrics(leave=0)
            self._profiler.at(self._progress.step)
        self._stop_if_asked()
        if self._evaluation_due():
            self._evaluate()
            if self._is_alone:
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
        in_time = self._clock_says_save()
        if self._saved_step == step:
            return False
        forked = self._setup.job.forked_from is not None and self._saved_step is None
        operation = self._setup.operation
        every = step > 0 and step % operation.checkpoint_every_steps == 0
        is_best = best is not None and best.step == step
        return forked or every or in_time or is_best or step == self._setup.identity.num_steps

    def _clock_says_save(self) -> bool:
        every_s = self._setup.operation.checkpoint_every_s
        if every_s is None or self._progress.step == 0:
            return False
        if self._writes and time.monotonic() - self._last_save >= every_s:
            self._agreement.propose("save")
        return self._agreement.due("save")

    def _evaluate(self) -> None:
        self._read_metrics(leave=0)
        step, started = self._progress.step, time.monotonic()
        # All of the state, and now: programs that move data must not be started by two threads at once, and the one
        # that watches the signals may have to save while this one evaluates.
        state = self._in_logical_order()
        with self._holding(), self._phases.enter("evaluate"):
            metrics = self._setup.objective.evaluate(state["params"], self._setup.placement.mesh)
        best = better(self._setup.operation, self._progress.best, step, metrics)
        self._progress = dataclasses.replace(self._progress, last_evaluated=step, best=best)
        if metrics:
            if self._writes and (step != self._first_step or not self._has_dev_row(step)):
                self._writer.write(step, {f"dev/{name}": value for name, value in metrics.items()}, show=False)
            self._setup.folder.events.write(
                "evaluated", step=step, metrics=metrics, best=best, evaluate_s=round(time.monotonic() - started, 3)
            )

    def _has_dev_row(self, step: int) -> bool:
        """Whether a process that was killed before it saved had written the dev metric of this step already."""
        rows = read_metrics(self._setup.folder.path)
        return any(row["step"] == step and name.startswith("dev/") for row in rows for name in row)

    def _save(self) -> None:
        """Starts a save; the next one, or the end, waits until it is committed."""
        self._settle()
        self._read_metrics(leave=0)
        with self._phases.enter("checkpoint"):
            if self._writes:
                disk.fsync(self._setup.folder.path / METRICS_FILE)
            self._setup.checkpoints.save_async(self._progress.step, self._in_logical_order(), self._progress.to_json())
        self._saved_step = self._saving_step = self._progress.step
        self._last_save = time.monotonic()
        self._speed.mark(self._progress.step)

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
        with self._phases.enter("checkpoint"):
            checkpoints.wait()
        if self._saving_step is not None:
            self._setup.folder.events.write("saved", step=self._saving_step)
            self._saving_step = None
        if self._writes and best is not None and best.step in checkpoints.steps() and best.step != checkpoints.best():
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
        self._write_end("stopped", step=step, reason=self._stop.reason)
        return _saved(step)

    def _stop_if_asked(self) -> None:
        if self._stop.requested:
            self._agreement.propose("stop")
        if self._agreement.due("stop"):
            step = self._save_now()
            self._write_end("stopped", step=step, reason=self._stop.reason)
            raise self._stop.error(_saved(step))

    def _write_end(self, event: str, **values: Any) -> None:
        """Writes where the time of this process went, then its last event."""
        goodput = self._speed.goodput()
        seconds: dict[str, float] = {name: round(value, 3) for name, value in goodput.phases_s.items()}
        seconds["wasted"] = round(goodput.wasted_s, 3)
        total_s, share = round(goodput.total_s, 3), round(goodput.share, 4)
        self._setup.folder.events.write("goodput", total_s=total_s, share=share, seconds=seconds)
        self._setup.folder.events.write(event, **values)

    def _read_metrics(self, leave: int) -> None:
        """Reads the metrics of dispatched steps, oldest first, until `leave` of them are left."""
        while len(self._pending) > leave:
            step, number, metrics = self._pending.popleft()
            with self._phases.enter("step"):
                arrived = jax.device_get(metrics)
            self._take_metrics(step, number, {name: value.item() for name, value in arrived.items()})

    def _is_logged(self, step: int) -> bool:
        return step == 1 or step % self._setup.operation.log_every_steps == 0

    def _take_metrics(self, step: int, number: int, values: dict[str, Any]) -> None:
        in_a_row, limit = values["num_skipped_in_a_row"], self._setup.identity.max_skipped_in_a_row
        if in_a_row:
            shown = {name: str(values[name]) for name in ("loss", "grad_norm")}
            self._setup.folder.events.write("skipped", step=step, batch=number, in_a_row=in_a_row, **shown)
        if in_a_row >= limit:
            self._write_end("diverged", step=step)
            raise DivergedError(
                f"step {step}: the loss or its gradient was not finite {in_a_row} steps in a row "
                f"(max_skipped_in_a_row={limit}); the last good state is the checkpoint of step {self._saved_step}; "
                "use a smaller learning rate or a longer warm-up"
            )
        if self._setup.identity.spikes is not None:
            self._progress = taken(self._setup.identity.spikes, self._progress, step, number, values["loss"])
        objective = self._setup.objective
        tokens = {"tokens": objective.tokens_per_batch(number)} if isinstance(objective, SaysTokens) else {}
        self._speed.count(
            num_examples=self._setup.identity.batch_sizes.size(number),
            num_tokens=tokens.get("tokens", 0),
            flops=self._flops,
        )
        if self._is_logged(step):
            self._writer.write(step, {"loss": values["loss"], **values, **tokens, **self._speed.row(step, self._flops)})
        else:
            self._writer.advance(step)

    def _finish(self) -> TrainResult:
        folder, best = self._setup.folder, self._progress.best
        with self._stop.hold(nothing_to_save):
            self._settle()
            state = self._in_logical_order()
            final, params = state_hash(state), state["params"]
            if best is not None and best.step != self._progress.step:
                params = self._setup.checkpoints.restore(best.step, {"params": params})[0]["params"]
            params = jax.tree.map(host_value, params)
            if self._writes:
                self._setup.objective.export(params, folder.model)
            self._write_end("finished", step=self._progress.step, state_hash=final, best=best)
            wait_for_all("the model is exported")
        return TrainResult(step=self._progress.step, state_hash=final, best=best, model=str(folder.model), trained=True)


def nothing_to_save() -> str:
    """For a phase in which there is nothing that a kill would lose."""
    return "nothing was lost: all there is so far is on disk"


def _saved(step: int) -> str:
    return f"the state of step {step} is saved" if step else "training had not begun, so there was nothing to save"
