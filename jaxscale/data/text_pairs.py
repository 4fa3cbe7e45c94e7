"""Two texts as one row of tokens: what stands before, between and behind them, and which of the two a token is of."""

import dataclasses

import numpy as np
from jaxtyping import Int32

from jaxscale.errors import UsageError

# The id of a token and its type: 0 where it is of the first text, 1 where it is of the second, as BERT counts.
TypedToken = tuple[int, int]
TokenIds = Int32[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFrame:
    """The special tokens that a tokenizer puts around two texts, and the types of all tokens.

    Attributes:
      opening: before the first text.
      between: the texts.
      closing: behind the second text.
      types: of the first text's own tokens, and of the second's.
    """

    opening: tuple[TypedToken, ...]
    between: tuple[TypedToken, ...]
    closing: tuple[TypedToken, ...]
    types: tuple[int, int]

    @property
    def num_special(self) -> int:
        """Special tokens of a row."""
        return len(self.opening) + len(self.between) + len(self.closing)

    def join(self, first: TokenIds, second: TokenIds, max_length: int) -> tuple[TokenIds, TokenIds]:
        """The ids and the types of a row of two texts; the second loses its last tokens where both are too long.

        Args:
          first: ids without special tokens; kept whole.
          second: the same.
          max_length: the most tokens the row may have.

        Raises:
          UsageError: the first text leaves the second no room.

        >>> frame = PairFrame(opening=((1, 0),), between=((2, 0),), closing=((2, 1),), types=(0, 1))
        >>> ids, types = frame.join(np.array([7, 8], np.int32), np.array([9, 9, 9], np.int32), 7)
        >>> ids.tolist(), types.tolist()
        ([1, 7, 8, 2, 9, 9, 2], [0, 0, 0, 0, 1, 1, 1])
        """
        room = max_length - self.num_special - len(first)
        if room < 1:
            raise UsageError(
                f"max_length={max_length} leaves no room for a second text beside {self.num_special} special tokens "
                f"and a first text of {len(first)}; use more"
            )
        kept = second[:room]
        special = [np.array(tokens, np.int32).reshape(-1, 2) for tokens in (self.opening, self.between, self.closing)]
        opening, between, closing = special
        ids = [opening[:, 0], first, between[:, 0], kept, closing[:, 0]]
        of_first, of_second = (
            np.full(len(text), type_, np.int32) for text, type_ in zip((first, kept), self.types, strict=True)
        )
        types = [opening[:, 1], of_first, between[:, 1], of_second, closing[:, 1]]
        return np.concatenate(ids).astype(np.int32), np.concatenate(types).astype(np.int32)
