"""Which batch a step trains on: step s has the s-th batch number that is not skipped."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOrder:
    """Where a run is in its data; with the step, all that says which batches are still to come.

    Attributes:
      next_number: no batch below it is trained on any more.
      skipped: numbers that are passed over, ascending; those below `next_number` say what was left out.
    """

    next_number: int = 0
    skipped: tuple[int, ...] = ()

    def numbers(self) -> Iterator[int]:
        """The batch numbers still to come, without end.

        >>> list(itertools.islice(DataOrder(next_number=2, skipped=(0, 3, 4)).numbers(), 3))
        [2, 5, 6]
        """
        left_out = frozenset(self.skipped)
        return (number for number in itertools.count(self.next_number) if number not in left_out)

    def advanced(self) -> "DataOrder":
        """The order once the next batch is trained on.

        >>> DataOrder(next_number=2, skipped=(2, 3)).advanced().next_number
        5
        """
        return dataclasses.replace(self, next_number=next(self.numbers()) + 1)

    def without(self, numbers: Iterable[int]) -> "DataOrder":
        """The order that passes over these numbers too.

        >>> DataOrder(skipped=(7,)).without([3, 7]).skipped
        (3, 7)
        """
        return dataclasses.replace(self, skipped=tuple(sorted({*self.skipped, *numbers})))
