"""Rows of tokens out of a dataset, each asked for by its number: documents packed together, or one after another."""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxscale.data.token_dataset import TokenDataset, TokenShard
from jaxscale.errors import UsageError

# Where nothing is to be predicted.
NO_TARGET = -1

# Leaves of int32 [N S]: `tokens`; `targets`, the token that follows, or NO_TARGET; `segments`, 1 for the first piece
# of a row, 2 for the next, 0 where the row is empty; `positions`, which begin at 0 in each segment.
Rows = dict[str, Int32[np.ndarray, "N S"]]


class RowSource(Protocol):
    """Rows numbered from 0; any of them costs the same, and none is held in memory."""

    @property
    def num_sequences(self) -> int:
        """How many rows there are."""
        ...

    def sequences(self, indices: Int64[np.ndarray, " N"]) -> Rows:
        """Rows by their numbers, in any order.

        Args:
          indices: each in 0..num_sequences-1.

        Raises:
          IndexError: there is no such row.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Runs of a shard's tokens that fill rows, one after another, from the first place of the first row to the last.

    Attributes:
      starts: of each, the place of its first token in the shard.
      lengths: of each, its places.
      segments: of each, its number in its row, from 1; 0 where its places stay empty.
      goes_on: of each, whether its last token predicts the one that follows it in the shard.
    """

    starts: Int64[np.ndarray, " P"]
    lengths: Int64[np.ndarray, " P"]
    segments: Int32[np.ndarray, " P"]
    goes_on: Bool[np.ndarray, " P"]


class PackedRows:
    """The rows of a dataset's packs: whole documents and pieces of long ones, none of which sees another.

    The last token of a document predicts nothing; the last of a piece predicts the document's next.
    """

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        """Opens the packs.

        Args:
          dataset: where the tokens are.
          sequence_length: S, tokens of a row.

        Raises:
          UsageError: the dataset has no packs of this length.
        """
        lengths = dataset.config.pack_lengths
        if sequence_length not in lengths:
            known = ", ".join(map(str, lengths)) or "none"
            raise UsageError(
                f"{dataset.path}: has no packs for sequence_length={sequence_length} (it has: {known}); use one "
                "of these, tokenize with --pack-lengths, or take rows that are concatenated"
            )
        self._shards, self._length = dataset.shards, sequence_length
        self._packs = [shard.packs(sequence_length) for shard in dataset.shards]
        self._ends = np.cumsum([len(packs.row_ends) for packs in self._packs], dtype=np.int64)
        self.num_sequences = int(self._ends[-1])

    def sequences(self, indices: Int64[np.ndarray, " N"]) -> Rows:
        """Rows by their numbers; see `RowSource`."""
        rows = _empty(len(indices), self._length)
        for shard, numbers, into in _by_shard(self._ends, indices):
            _fill(rows, into, self._shards[shard], self._packed(shard, numbers))
        return rows

    def _packed(self, shard: int, numbers: Int64[np.ndarray, " N"]) -> _Pieces:
        """The pieces of a shard's rows, and behind those of each row what stays empty of it."""
        packs, offsets = self._packs[shard], self._shards[shard].offsets
        ends = packs.row_ends[numbers].astype(np.int64)
        begins = np.where(numbers > 0, packs.row_ends[np.maximum(numbers - 1, 0)], 0).astype(np.int64)
        counts = ends - begins
        chosen = np.repeat(begins, counts) + _within(counts)
        starts, lengths = packs.starts[chosen].astype(np.int64), packs.lengths[chosen].astype(np.int64)
        stops = (starts + lengths).astype(np.uint64)
        is_rest = np.zeros(len(chosen) + len(numbers), bool)
        is_rest[np.cumsum(counts + 1) - 1] = True
        filled = np.add.reduceat(lengths, np.cumsum(counts) - counts)
        return _Pieces(
            starts=_spread(starts, ~is_rest),
            lengths=_spread(lengths, ~is_rest) + _spread(self._length - filled, is_rest),
            segments=np.where(is_rest, 0, _within(counts + 1) + 1).astype(np.int32),
            goes_on=_spread(offsets[np.searchsorted(offsets, stops)] != stops, ~is_rest),
        )


class ConcatenatedRows:
    """A shard's documents one after another, cut into rows: a row may see the end of one and the begin of the next.

    What is left at a shard's end is left out.
    """

    def __init__(self, dataset: TokenDataset, sequence_length: int) -> None:
        """Counts the rows.

        Args:
          dataset: where the tokens are.
          sequence_length: S, tokens of a row.

        Raises:
          UsageError: no shard fills a row.
        """
        self._shards, self._length = dataset.shards, sequence_length
        # One more token than a row has: its last one predicts too.
        counts = [(shard.counts.num_tokens - 1) // sequence_length for shard in dataset.shards]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.num_sequences = int(self._ends[-1])
        if not self.num_sequences:
            raise UsageError(f"{dataset.path}: none of its shards fills a row of sequence_length={sequence_length}")

    def sequences(self, indices: Int64[np.ndarray, " N"]) -> Rows:
        """Rows by their numbers; see `RowSource`."""
        rows = _empty(len(indices), self._length)
        for shard, numbers, into in _by_shard(self._ends, indices):
            ones = np.ones_like(numbers)
            pieces = _Pieces(
                starts=numbers * self._length,
                lengths=ones * self._length,
                segments=ones.astype(np.int32),
                goes_on=ones > 0,
            )
            _fill(rows, into, self._shards[shard], pieces)
        return rows


def _fill(rows: Rows, into: Int64[np.ndarray, " N"], shard: TokenShard, pieces: _Pieces) -> None:
    """Writes the rows that the pieces fill to their places `into`."""
    segments, within = np.repeat(pieces.segments, pieces.lengths), _within(pieces.lengths)
    is_empty = segments == 0
    within[is_empty] = 0
    tokens = shard.tokens[np.repeat(pieces.starts, pieces.lengths) + within].astype(np.int32)
    tokens[is_empty] = 0
    # Every token is the target of the one before it; the last of a piece has its own, read from beyond, or none.
    targets = np.empty_like(tokens)
    targets[:-1] = tokens[1:]
    targets[is_empty] = NO_TARGET
    last = np.cumsum(pieces.lengths) - 1
    targets[last[~pieces.goes_on]] = NO_TARGET
    targets[last[pieces.goes_on]] = shard.tokens[(pieces.starts + pieces.lengths)[pieces.goes_on]]
    for name, leaf in (("tokens", tokens), ("targets", targets), ("segments", segments), ("positions", within)):
        rows[name][into] = leaf.reshape(len(into), -1)


def _spread(values: np.ndarray, places: Bool[np.ndarray, " P"]) -> np.ndarray:
    """Values at the places that are True, nothing at the others."""
    spread = np.zeros(len(places), values.dtype)
    spread[places] = values
    return spread


def _empty(num_rows: int, length: int) -> Rows:
    return {name: np.empty((num_rows, length), np.int32) for name in ("tokens", "targets", "segments", "positions")}


def _by_shard(
    ends: Int64[np.ndarray, " K"], indices: Int64[np.ndarray, " N"]
) -> list[tuple[int, Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]]:
    """(shard, numbers in it, their places in `indices`) of rows that are numbered shard after shard."""
    indices = np.asarray(indices, np.int64)
    if indices.size and not (indices.min() >= 0 and indices.max() < ends[-1]):
        raise IndexError(f"rows {indices.min()}..{indices.max()} must lie in 0..{ends[-1] - 1}")
    shards = np.searchsorted(ends, indices, "right")
    begins = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    found = []
    for shard in np.unique(shards).tolist():
        into = np.flatnonzero(shards == shard)
        found.append((shard, indices[into] - begins[shard], into))
    return found


def _within(lengths: Int64[np.ndarray, " P"]) -> Int64[np.ndarray, " T"]:
    """0, 1, .. lengths[0] - 1, 0, 1, .. lengths[1] - 1, ...

    >>> _within(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
