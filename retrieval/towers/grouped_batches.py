"""Which examples batch n holds where batches are drawn within groups: sources, or clusters of documents alike.

Negatives from the group of the query's own document are harder than those from anywhere.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

from jaxscale.data.permutation import Permutation, fold_seed
from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedSchedule:
    """The examples of every batch, to be asked in any order; each epoch is another one.

    In an epoch every group is permuted and cut into whole batches. What is left of the groups is laid one after the
    other, groups in a random order, and cut into batches too: each of these is of few groups, and small groups are
    seen. The remainder of that is left out. All batches then come in a random order. A batch takes as long as a look
    through the groups does, whatever its number.

    Attributes:
      members: the examples, group by group.
      sizes: of the groups, in the same order.
      global_batch_size: examples in a batch.
      seed: any whole number.

    >>> schedule = GroupedSchedule.of([0, 1, 0, 1, 0, 1], global_batch_size=2, seed=0)
    >>> sorted(len({int(example) % 2 for example in schedule.indices(number)}) for number in range(3))
    [1, 1, 2]
    """

    members: Int64[np.ndarray, "N"]
    sizes: Int64[np.ndarray, "G"]
    global_batch_size: int
    seed: int

    @classmethod
    def of(
        cls, groups: Sequence[int] | Int[np.ndarray, "N"], *, global_batch_size: int, seed: int
    ) -> "GroupedSchedule":
        """The schedule of examples of which each is in one group.

        Args:
          groups: of every example, any whole numbers.
          global_batch_size: examples in a batch.
          seed: any whole number.

        Raises:
          UsageError: there are fewer examples than a batch holds.
        """
        if len(groups) < global_batch_size:
            raise UsageError(
                f"global_batch_size={global_batch_size} is more than the {len(groups)} examples there are; "
                f"use at most {len(groups)}"
            )
        _, sizes = np.unique(groups, return_counts=True)
        members = np.argsort(groups, kind="stable")
        return cls(members=members, sizes=sizes.astype(np.int64), global_batch_size=global_batch_size, seed=seed)

    @property
    def num_batches_per_epoch(self) -> int:
        """Whole batches in one pass over the examples."""
        return int(self._num_whole.sum() + self._rests.sum() // self.global_batch_size)

    @property
    def _num_whole(self) -> Int64[np.ndarray, "G"]:
        return self.sizes // self.global_batch_size

    @property
    def _rests(self) -> Int64[np.ndarray, "G"]:
        return self.sizes % self.global_batch_size

    def indices(self, number: int) -> Int64[np.ndarray, "B"]:
        """The examples of batch `number`, all different."""
        if number < 0:
            raise UsageError(f"number={number} must be at least 0")
        epoch, turn = divmod(number, self.num_batches_per_epoch)
        order = Permutation(self.num_batches_per_epoch, fold_seed(self.seed, "batches", epoch))
        batch, size = int(order.at(np.array([turn]))[0]), self.global_batch_size
        ends = np.cumsum(self._num_whole)
        if batch < ends[-1]:
            group = int(np.searchsorted(ends, batch, side="right"))
            first = (batch - int(ends[group] - self._num_whole[group])) * size
            return self._of_group(epoch, group, np.arange(first, first + size))
        return self._of_rests(epoch, np.arange(size) + (batch - int(ends[-1])) * size)

    def _of_rests(self, epoch: int, places: Int64[np.ndarray, "B"]) -> Int64[np.ndarray, "B"]:
        """The examples at places in what the whole batches of an epoch leave of the groups."""
        num_groups = len(self.sizes)
        order = Permutation(num_groups, fold_seed(self.seed, "rests", epoch)).at(np.arange(num_groups))
        ends = np.cumsum(self._rests[order])
        at = np.searchsorted(ends, places, side="right")
        parts = []
        for stop in np.unique(at):
            group = int(order[stop])
            inside = places[at == stop] - (ends[stop] - self._rests[group])
            parts.append(self._of_group(epoch, group, self._num_whole[group] * self.global_batch_size + inside))
        return np.concatenate(parts)

    def _of_group(self, epoch: int, group: int, places: Int64[np.ndarray, "_"]) -> Int64[np.ndarray, "_"]:
        """The examples at places in a group's permutation of one epoch."""
        size, first = int(self.sizes[group]), int(self.sizes[:group].sum())
        permutation = Permutation(size, fold_seed(self.seed, "epoch", epoch, "group", group))
        return self.members[first + permutation.at(places)]
