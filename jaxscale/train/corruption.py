"""Text that is corrupted before a model reads it, in training and evaluation alike: masked, or with spans cut out."""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from jaxscale.train.held_out import Sequences


class Corruption(Protocol):
    """What is done to rows of text, so that a model has something to find out."""

    def applied(self, batch: dict[str, np.ndarray], sample_ids: Int64[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """The rows as a model reads them, and what it is to answer; a pure function of rows and sample ids."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Held-out rows as a model reads them; each is corrupted in the same way whenever it is asked for.

    Attributes:
      source: the rows.
      corruption: what is done to them.
    """

    source: Sequences
    corruption: Corruption

    @property
    def num_sequences(self) -> int:
        """How many rows there are."""
        return self.source.num_sequences

    def sequences(self, indices: Int64[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """See `Sequences`."""
        return self.corruption.applied(self.source.sequences(indices), indices)
