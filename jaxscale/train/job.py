"""What a training job says: what the run is (identity, hashed) and how it is operated (free to change)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, Self, runtime_checkable

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.attention_choice import AttentionSetting
from jaxscale.observe.profile import ProfileWindow
from jaxscale.train.adafactor import AdafactorConfig
from jaxscale.train.batch_sizes import BatchSizes
from jaxscale.train.objective import Objective
from jaxscale.train.optimizer import AdamWConfig
from jaxscale.train.spikes import SpikeConfig

GatherWeights = Literal["microbatch", "step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingIdentity:
    """The part of every job's identity that the loop itself uses; a resumed run must have the same.

    Attributes:
      seed: of parameters, data order and dropout; below 2**32.
      num_steps: the length of the run; the only field of an identity that may change on resume, and only upwards.
      global_batch_size: examples per step, over all devices.
      attention: what computes it: `auto` for the platform's kernel where that can, and the plain attention elsewhere;
        `plain`; or a kernel, `blockwise` or `recomputed` (any platform, `auto`'s on CPU), `splash` (TPU) or `cudnn`
        (NVIDIA), refused where it can't. It changes rounding.
      batch_ramp: where batches grow: pairs of a batch's number and the size of the batches from there on, the first of
        batch 0, the last size global_batch_size. Empty: all are of that size.
      grad_accum: microbatches per step; their mean gradient is the step's gradient.
      optimizer: which one, and its schedule.
      compute_dtype: of activations; parameters, gradients and the optimizer's second moment are float32 always.
      max_skipped_in_a_row: steps in a row with a non-finite loss or gradient after which the run has diverged; fewer
        are skipped.
      spikes: when a loss is a spike that the run rolls back from; None for never.
    """

    seed: int = 0
    num_steps: int = 1000
    global_batch_size: int = 64
    grad_accum: int = 1
    optimizer: AdamWConfig | AdafactorConfig
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    max_skipped_in_a_row: int = 10
    spikes: SpikeConfig | None = typed_json.added(None)  # noqa: RUF009 (a field of a frozen class)
    batch_ramp: tuple[tuple[int, int], ...] = typed_json.added(())
    attention: AttentionSetting = typed_json.added("auto")  # noqa: RUF009 (a field of a frozen class)

    def __post_init__(self) -> None:
        for name in ("num_steps", "global_batch_size", "grad_accum", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed={self.seed} must be at least 0 and below 2**32")
        if self.global_batch_size % self.grad_accum:
            raise UsageError(
                f"global_batch_size={self.global_batch_size} must be divisible by grad_accum={self.grad_accum}"
            )
        if self.batch_sizes.stages[-1][1] != self.global_batch_size:
            raise UsageError(
                f"batch_ramp={self.batch_ramp} must end with global_batch_size={self.global_batch_size}, the size that "
                "it leads to; leave it empty for batches of that size from the start"
            )
        if any(size % self.grad_accum for size in self.batch_sizes.distinct):
            raise UsageError(
                f"batch_ramp={self.batch_ramp}: every size must be divisible by grad_accum={self.grad_accum}"
            )
        end = self.optimizer.schedule.last_useful_step
        if end is not None and self.num_steps > end:
            raise UsageError(
                f"num_steps={self.num_steps} goes beyond decay_steps={end}, from where the learning rate is 0; "
                "use a longer decay_steps (a new run, or --fork-from this one) or a final_learning_rate above 0"
            )

    @property
    def batch_sizes(self) -> BatchSizes:
        """The size of every batch."""
        return BatchSizes(stages=self.batch_ramp or ((0, self.global_batch_size),))

    def check_one_size(self, trained: str) -> None:
        """Refuses batches that grow.

        Args:
          trained: what can't be trained on them, in the plural.

        Raises:
          UsageError: there is a ramp.
        """
        if self.batch_ramp:
            raise UsageError(
                f"training.batch_ramp={self.batch_ramp}: {trained} train on batches of one size; use none, and "
                "training.global_batch_size for that size"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """How a run is operated: all may change on resume, and none changes what is computed.

    A mesh, and when weights are gathered, only round it.

    Attributes:
      mesh: as in `fsdp=4,tensor=2`; empty for all devices on `data`.
      checkpoint_every_steps: steps between checkpoints.
      keep_last: the newest checkpoints kept, besides the best one.
      keep_every_steps: checkpoints at multiples of this step are kept for ever; None for none.
      log_every_steps: steps between rows of metrics.
      eval_every_steps: the dev metric is computed at multiples of this step, 0 included; None for at the end only.
      best_metric: the dev metric that chooses the exported checkpoint; empty for the last checkpoint.
      best_mode: whether a higher or a lower value of it is better.
      checkpoint_every_s: seconds after which a checkpoint is due besides; None for by steps only.
      profile: START:STOP, the steps that jax's profiler records into the folder `profile`; empty for none.
      compile_cache: a folder for compiled programs, `auto` (in the user's cache folder) or `off`; several CPU devices
        do without one.
      tensorboard: whether TensorBoard files are written too; needs the extra `tensorboard`.
      gather_weights: when weights that are stored in parts over `fsdp` are gathered: in every `microbatch`, forward and
        backward, or once per `step` for all of its microbatches, which moves less and holds a copy of them for as long;
        the same where grad_accum is 1.
    """

    mesh: str = ""
    checkpoint_every_steps: int = 500
    keep_last: int = 2
    keep_every_steps: int | None = None
    log_every_steps: int = 10
    eval_every_steps: int | None = None
    best_metric: str = ""
    best_mode: Literal["max", "min"] = "max"
    compile_cache: str = "auto"
    tensorboard: bool = False
    checkpoint_every_s: float | None = typed_json.added(None)
    profile: str = typed_json.added("")
    gather_weights: GatherWeights = typed_json.added("microbatch")  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "keep_last", "log_every_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("keep_every_steps", "eval_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1, or None")
        if self.checkpoint_every_s is not None and not self.checkpoint_every_s > 0:
            raise UsageError(f"checkpoint_every_s={self.checkpoint_every_s} must be above 0, or None")
        if self.profile:
            ProfileWindow.parse(self.profile)

    def check_best_metric(self, names: Sequence[str], hint: str = "") -> None:
        """Refuses to choose a checkpoint by what is not computed.

        Args:
          names: of the dev metrics.
          hint: what else there could be.

        Raises:
          UsageError: `best_metric` is none of them.
        """
        if self.best_metric and self.best_metric not in names:
            hint = f" ({hint})" if hint else ""
            raise UsageError(
                f"operation.best_metric={self.best_metric!r} must be one of {', '.join(names)}, or empty{hint}"
            )


class Job(Protocol):
    """What a recipe returns for `jaxscale train`: a frozen dataclass of data, with these fields and methods."""

    @property
    def training(self) -> TrainingIdentity:
        """What the loop uses of the identity."""
        ...

    @property
    def operation(self) -> Operation:
        """How the run is operated."""
        ...

    def check(self, mesh: MeshSpec) -> None:
        """Checks what no field can check alone.

        Args:
          mesh: the resolved mesh the job will run on.

        Raises:
          UsageError: naming the field, what it is and what it may be.
        """
        ...

    def starting_from(self, path: str) -> Self:
        """The same job, starting from the parameters (and whatever belongs to them) of the folder at `path`.

        Args:
          path: a model folder, as `Objective.export` writes it; of a run folder, its `model/`.
        """
        ...

    def objective(self) -> Objective:
        """Reads the data and the starting parameters and returns what is trained."""
        ...


@runtime_checkable
class KeepsBeside(Protocol):
    """A job that keeps something beside its run folder, made once and read again when the run resumes."""

    def beside(self, out: Path) -> Self:
        """The same job with places beside the run folder `out` for what has no place yet."""
        ...
