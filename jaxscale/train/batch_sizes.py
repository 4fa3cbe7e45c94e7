"""Batches that grow while a run goes on: how large batch n is, and which sample it begins with."""

import bisect
import dataclasses
import itertools

from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """The size of every batch, by its number; a pure function, answered without counting batches one by one.

    Attributes:
      stages: pairs of a batch's number and the size of the batches from there on, the first for batch 0.

    Reference: Chowdhery et al. 2022 (PaLM), section 5 ("Batch size"), https://arxiv.org/abs/2204.02311

    >>> sizes = BatchSizes(stages=((0, 2), (3, 4)))
    >>> [(sizes.first_sample(number), sizes.size(number)) for number in range(5)]
    [(0, 2), (2, 2), (4, 2), (6, 4), (10, 4)]
    """

    stages: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        if starts[:1] != [0] or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
            raise UsageError(f"stages={self.stages} must begin with batch 0 and go upwards, no number twice")
        if any(size < 1 for _, size in self.stages):
            raise UsageError(f"stages={self.stages} must have sizes of at least 1")

    @property
    def distinct(self) -> tuple[int, ...]:
        """The sizes that there are, the smallest first."""
        return tuple(sorted({size for _, size in self.stages}))

    def size(self, number: int) -> int:
        """Rows of batch `number`."""
        return self.stages[self._stage(number)][1]

    def first_sample(self, number: int) -> int:
        """How many samples the batches before batch `number` have together."""
        stage = self._stage(number)
        before = sum(
            (later - start) * size for (start, size), (later, _) in itertools.pairwise(self.stages[: stage + 1])
        )
        start, size = self.stages[stage]
        return before + (number - start) * size

    def _stage(self, number: int) -> int:
        if number < 0:
            raise UsageError(f"number={number} must be at least 0")
        return bisect.bisect_right(self.stages, number, key=lambda stage: stage[0]) - 1
