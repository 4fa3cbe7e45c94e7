"""`jaxscale train`: trains a recipe in a run folder; the same command again resumes."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import mesh_from_text, spec_of
from jaxscale.observe.heartbeat import Heartbeat
from jaxscale.train.job import Job, KeepsBeside
from jaxscale.train.loop import train
from jaxscale.train.result import TrainResult
from jaxscale.train.resume import Fork
from jaxscale.train.run_folder import JOB_FILE
from jaxscale.train.several_runs import SeveralRuns
from jaxscale.train.signals import StopSignals
from launch.processes import is_first_process, joined


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains a recipe; the same command again goes on from the last checkpoint.

    SIGTERM saves and ends with exit code 42, Ctrl-C with 130. Every field of the recipe's job is a flag.

    Example: jaxscale train two_tower_small --out runs/a --mesh fsdp=4,tensor=2 --training.num-steps 200

    Attributes:
      out: the run folder.
      mesh: as fsdp=4,tensor=2; empty for what the recipe says, else all devices on data.
      fork_from: RUN or RUN@step: a new run that begins with the state of another one, whatever its job.
      init_from: a model folder, or a run folder with a model: a new run that begins with its parameters.
      profile: START:STOP: the steps that jax's profiler records.
      job: the recipe's job.
      words: of the command line.
    """

    out: Path
    mesh: str = ""
    fork_from: str = ""
    init_from: str = ""
    profile: str = ""
    # tyro sees the class of the recipe's job through the default that `for_recipe` gives. An optional part that the
    # recipe has is flags like any other; one that it does without stays away.
    job: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = None
    # What was written on the command line; for `replay`.
    words: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for messages.
          job: what it returns.

        Raises:
          UsageError: the recipe is of something that is not trained.
        """
        has_parts = all(hasattr(job, part) for part in ("training", "operation"))
        if not has_parts or not (hasattr(job, "objective") or isinstance(job, SeveralRuns)):
            raise UsageError(_not_to_train(name, job))
        return cls(out=tyro.MISSING, job=job)

    def run(self) -> dict[str, Any]:
        """Trains, prints what the run came to, and returns it."""
        if self.fork_from and self.init_from:
            raise UsageError("--fork-from and --init-from both say what the run begins with; give one of them")
        with StopSignals() as stop, joined() as heartbeat:
            with stop.hold(_nothing_to_save):
                job = self.resolved_job()
                job.check(spec_of(mesh_from_text(job.operation.mesh)))
            if isinstance(job, SeveralRuns):
                result = self._train_several(job, stop, heartbeat)
            else:
                result = self._train(job, stop, heartbeat)
        if is_first_process():
            print(_summary(result))
        return {"out": str(self.out), **typed_json.encode(result)}

    def _train(self, job: Job, stop: StopSignals, heartbeat: Heartbeat | None) -> TrainResult:
        with stop.hold(_nothing_to_save):
            objective = job.objective()
        return train(
            objective,
            job.training,
            job.operation,
            self.out,
            fork=Fork.parse(self.fork_from) if self.fork_from else None,
            stop=stop,
            command=self.words,
            heartbeat=heartbeat,
        )

    def _train_several(self, job: SeveralRuns, stop: StopSignals, heartbeat: Heartbeat | None) -> TrainResult:
        if self.fork_from:
            raise UsageError(f"--fork-from {self.fork_from}: a job of several runs begins none of them with a state")
        return job.train_in(self.out, stop=stop, command=self.words, heartbeat=heartbeat)

    def resolved_job(self) -> Job | SeveralRuns:
        """The job with the verb's own flags put into it."""
        given = {name: value for name in ("mesh", "profile") if (value := getattr(self, name))}
        job = dataclasses.replace(self.job, operation=dataclasses.replace(self.job.operation, **given))
        if isinstance(job, KeepsBeside):
            job = job.beside(self.out)
        resolved: Job | SeveralRuns = (
            job.starting_from(str(_model_folder(Path(self.init_from)))) if self.init_from else job
        )
        return resolved


def _nothing_to_save() -> str:
    return "training had not begun, so there was nothing to save"


def _not_to_train(name: str, job: Any) -> str:
    if not hasattr(job, "planned_step"):
        return f"recipe {name!r} gives a {type(job).__name__}, which is not a job to train"
    return (
        f"recipe {name!r} gives a {type(job).__name__}, which can be planned but not trained: it has no objective; use "
        f"another recipe (`jaxscale recipes` lists them), or `jaxscale explain {name}`"
    )


def _model_folder(path: Path) -> Path:
    """The model folder at `path`, or of the run folder at `path`."""
    if not path.is_dir():
        raise DataError(f"--init-from {path}: there is no such folder")
    if not (path / JOB_FILE).is_file():
        return path
    if not (path / "model").is_dir():
        raise DataError(f"--init-from {path}: this run has exported no model yet; use --fork-from to take its state")
    return path / "model"


def _summary(result: TrainResult) -> str:
    best = result.best
    chosen = f"the best {best.metric}, {best.value:.4f} at step {best.step}" if best else "the last step"
    return f"step {result.step} state {result.state_hash[:16]} model {result.model} (parameters of {chosen})"
