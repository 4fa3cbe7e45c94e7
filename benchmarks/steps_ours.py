"""Steps of `jaxscale train` without the loop, on one batch, for the benchmarks that time them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxscale.train.job import TrainingIdentity
from jaxscale.train.placement import Placement
from jaxscale.train.programs import StepPrograms
from jaxscale.train.step import make_step


class Steps:
    """A compiled program, its state and its one batch.

    Args:
      placement: of what is trained.
      identity: the loop's part of the job.
      state: placed.
      batch: on the host.
    """

    def __init__(
        self, placement: Placement, identity: TrainingIdentity, state: Any, batch: Mapping[str, np.ndarray]
    ) -> None:
        self._state, self._batch = state, placement.put_batch(batch)
        self._programs = StepPrograms(
            make_step(placement.loss, identity),
            state_shardings=placement.state_shardings,
            batch_shardings=placement.batch_shardings,
            metrics_sharding=placement.metrics_sharding,
        )
        self._programs.compile(self._state, self._batch)

    def run(self, num_steps: int) -> float:
        """Makes so many steps and returns the last one's loss."""
        for _ in range(num_steps):
            self._state, metrics = self._programs.run(self._state, self._batch)
        return float(metrics["loss"])
