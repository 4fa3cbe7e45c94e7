"""What a training step computes, on shapes alone: all that a plan, a cost or a compilation asks of a job."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import optax
from jaxtyping import Array, Float

from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.objective import Params
from jaxscale.train.step import accumulated_gradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A training step of which nothing has been computed and for which no data has been read.

    Attributes:
      loss: the float32 mean loss of a batch, or of a microbatch of it; pure and traceable.
      params: a tree of `jax.ShapeDtypeStruct`: the master weights.
      batch: the global batch, `jax.ShapeDtypeStruct` by name; leading dim of every leaf: the examples.
      optimizer: the transformation whose state goes along.
      num_tokens: tokens in a global batch, over all its leaves that the model reads.
      grad_accum: microbatches per step.
    """

    loss: Callable[[Params, Mapping[str, jax.Array]], Float[Array, ""]]
    params: Params
    batch: dict[str, jax.ShapeDtypeStruct]
    optimizer: optax.GradientTransformation
    num_tokens: int
    grad_accum: int = 1

    def gradient(self, params: Params, batch: Mapping[str, jax.Array]) -> tuple[Float[Array, ""], Params]:
        """The loss and its gradient, each the mean over `grad_accum` microbatches, cut as the training step cuts them.

        Args:
          params: arrays of the shapes of `params`.
          batch: arrays of the shapes of `batch`.
        """
        (loss, _), gradient = accumulated_gradient(
            lambda params, batch, key: (self.loss(params, batch), {}),
            self.grad_accum,
            params,
            batch,
            jax.random.key(0, impl="threefry2x32"),  # of no effect: the loss takes none
        )
        return loss, gradient


class PlannableJob(Protocol):
    """A job whose step can be explained and planned before there is any data."""

    @property
    def training(self) -> TrainingIdentity:
        """Batch, microbatches, optimizer and number format of the step."""
        ...

    @property
    def operation(self) -> Operation:
        """Its `mesh` is the one asked about where no other is named."""
        ...

    def planned_step(self) -> PlannedStep:
        """The step. Reads no data.

        Raises:
          UsageError: the job's parts do not fit each other, or lack something; naming the field and what to do.
        """
        ...
