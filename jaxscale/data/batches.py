"""Which examples batch n holds: a pure function of (number of examples, batch size, seed, n, skip list)."""

import bisect
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """The examples of every batch of a training run, to be asked in any order by any number of hosts.

    Each epoch is a new permutation of the examples cut into whole batches. The remainder of an epoch
    (`num_examples % global_batch_size`, others each time) is left out, so that no example meets itself in a batch and
    becomes its own negative.

    Attributes:
      num_examples: how many examples there are; they are named 0..num_examples-1.
      global_batch_size: examples in a batch, over all hosts.
      seed: any whole number.
      skip: batches of the unskipped schedule that are passed over, in increasing order, such as those that made the
        loss spike; what follows moves up.

    >>> schedule = BatchSchedule(num_examples=10, global_batch_size=4, seed=0)
    >>> schedule.indices(3).shape
    (4,)
    >>> skipping = BatchSchedule(num_examples=10, global_batch_size=4, seed=0, skip=(3,))
    >>> bool((skipping.indices(3) == schedule.indices(4)).all())
    True
    """

    num_examples: int
    global_batch_size: int
    seed: int
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise UsageError(f"global_batch_size={self.global_batch_size} must be at least 1")
        if self.num_examples < self.global_batch_size:
            raise UsageError(
                f"global_batch_size={self.global_batch_size} is more than the {self.num_examples} examples there are; "
                f"use at most {self.num_examples}"
            )
        if any(s < 0 for s in self.skip) or list(self.skip) != sorted(set(self.skip)):
            raise UsageError(f"skip={self.skip} must hold batch numbers from 0, increasing, none twice")

    @property
    def num_batches_per_epoch(self) -> int:
        """Whole batches in one pass over the examples."""
        return self.num_examples // self.global_batch_size

    def indices(self, step: int) -> Int64[np.ndarray, "B"]:
        """The examples of batch `step`, in order.

        Args:
          step: the batch's number, from 0.

        Returns:
          int64 [global_batch_size], each in 0..num_examples-1, all different.
        """
        if step < 0:
            raise UsageError(f"step={step} must be at least 0")
        epoch, batch = divmod(self._unskipped(step), self.num_batches_per_epoch)
        permutation = Permutation(self.num_examples, fold_seed(self.seed, "epoch", epoch))
        first = batch * self.global_batch_size
        return permutation.at(np.arange(first, first + self.global_batch_size, dtype=np.int64))

    def _unskipped(self, step: int) -> int:
        """The number, in the schedule without a skip list, of the batch that stands at `step`.

        `skip[i] - i` batches that are not skipped come before `skip[i]`, so those with `skip[i] - i <= step` precede
        the one we look for.
        """
        return step + bisect.bisect_right(range(len(self.skip)), step, key=lambda i: self.skip[i] - i)
