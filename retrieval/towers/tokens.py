"""The tokens of many texts, made once up front and kept in two flat arrays."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

TokenRow = Sequence[int] | Int[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTable:
    """Tokens of many texts in two flat arrays.

    Attributes:
      flat: [T] ids of all texts, one after the other.
      offsets: [N + 1] where each text begins; the last is T.
    """

    flat: Int[np.ndarray, "T"]
    offsets: Int[np.ndarray, "N_plus_1"]

    @classmethod
    def of(cls, texts_ids: Iterable[TokenRow]) -> "TokenTable":
        """Packs the ids of each text.

        >>> TokenTable.of([[5, 6], [7]]).rows(np.array([1, 0]))
        [array([7], dtype=int32), array([5, 6], dtype=int32)]
        """
        arrays = [np.asarray(ids, np.int32) for ids in texts_ids]
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in arrays])]).astype(np.int64)
        return cls(flat=np.concatenate([np.empty(0, np.int32), *arrays]), offsets=offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self, rows: Int[np.ndarray, "B"]) -> list[Int[np.ndarray, "_"]]:
        """The ids of the texts at `rows`."""
        return [self.flat[self.offsets[row] : self.offsets[row + 1]] for row in rows]
