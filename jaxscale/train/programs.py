"""The compiled steps: one program for each bucket of batch shapes, compiled once, ahead of its first call."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxscale.sharding import rematerialization
from jaxscale.train.batch_shapes import Bucket, bucket_of
from jaxscale.train.state import State
from jaxscale.train.step import Metrics


class StepPrograms:
    """The step, compiled for the shapes it has met.

    Compiling ahead of time keeps the state's buffers valid until the call that donates them, so that a state can be
    saved while XLA compiles.

    Args:
      step: `(state, batch) -> (state, metrics)`, pure.
      state_shardings: a tree of shardings like the state; the state stays where it is.
      batch_shardings: of the leaves of a batch, by name.
      metrics_sharding: of every metric.
    """

    def __init__(
        self,
        step: Callable[[State, Mapping[str, jax.Array]], tuple[State, Metrics]],
        *,
        state_shardings: Any,
        batch_shardings: Mapping[str, jax.sharding.Sharding],
        metrics_sharding: jax.sharding.Sharding,
    ) -> None:
        self._step = jax.jit(
            step,
            in_shardings=(state_shardings, dict(batch_shardings)),
            out_shardings=(state_shardings, metrics_sharding),
            donate_argnums=0,
        )
        self._compiled: dict[Bucket, Any] = {}

    def has(self, batch: Mapping[str, jax.Array]) -> bool:
        """Whether the step is compiled for a batch of these shapes."""
        return bucket_of(batch) in self._compiled

    def compile(
        self, state: State, batch: Mapping[str, jax.Array]
    ) -> tuple[float, tuple[rematerialization.Rematerialization, ...]]:
        """Compiles the step for these shapes; reads neither argument, donates nothing.

        Returns:
          The seconds it took, and the arrays that the program copies whole to change how they are split.
        """
        started = time.monotonic()
        lowered = self._step.lower(state, dict(batch))
        self._compiled[bucket_of(batch)], copied = rematerialization.compile_watched(lowered)
        return time.monotonic() - started, copied

    def run(self, state: State, batch: Mapping[str, jax.Array]) -> tuple[State, Metrics]:
        """One step; the buffers of `state` are donated. The shapes must have been compiled."""
        new_state, metrics = self._compiled[bucket_of(batch)](state, dict(batch))
        return new_state, metrics
