"""Span corruption, what T5 is trained on: spans of a text are cut out of the source and asked for in the target."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxscale.data.permutation import draws
from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """How much of a row is cut out, and in how many pieces; both follow from the row's length alone.

    Attributes:
      rate: the share of a row's tokens that is cut out.
      mean_span_tokens: the mean length of what is cut out in one piece.

    Reference: Raffel et al. 2020 (T5), section 3.1.4 ("Unsupervised objective") and table 7 (15 %, spans of 3),
      https://arxiv.org/abs/1910.10683

    >>> recipe = SpanCorruption()
    >>> recipe.row_length(source_length=512), recipe.source_length(568), recipe.target_length(568)
    (568, 512, 114)
    """

    rate: float = 0.15
    mean_span_tokens: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UsageError(f"rate={self.rate} must be above 0 and below 1")
        if not self.mean_span_tokens >= 1:
            raise UsageError(f"mean_span_tokens={self.mean_span_tokens} must be at least 1")

    def num_cut(self, row_length: int) -> int:
        """Tokens that are cut out of a row; at least one is, and at least one stays.

        Args:
          row_length: tokens of a row, at least 2.
        """
        return min(max(round(row_length * self.rate), 1), row_length - 1)

    def num_spans(self, row_length: int) -> int:
        """Pieces in which they are cut out; a kept token stands before each of them.

        Args:
          row_length: tokens of a row, at least 2.
        """
        num_cut = self.num_cut(row_length)
        return min(max(round(num_cut / self.mean_span_tokens), 1), row_length - num_cut)

    def source_length(self, row_length: int) -> int:
        """Tokens of a source: what is kept, a sentinel for each span, and the end token.

        Args:
          row_length: tokens of a row, at least 2.
        """
        return row_length - self.num_cut(row_length) + self.num_spans(row_length) + 1

    def target_length(self, row_length: int) -> int:
        """Tokens of a target: what is cut out, a sentinel before each span, and the end token.

        Args:
          row_length: tokens of a row, at least 2.
        """
        return self.num_cut(row_length) + self.num_spans(row_length) + 1

    def row_length(self, *, source_length: int) -> int:
        """The most tokens that a row may have for its source to fit.

        Args:
          source_length: tokens of a source, at least 3.

        Raises:
          UsageError: no row is so short.
        """
        length = 2
        if self.source_length(length) > source_length:
            raise UsageError(f"source_length={source_length} must be at least {self.source_length(length)}")
        while self.source_length(length + 1) <= source_length:
            length += 1
        return length


def corrupt_spans(
    tokens: Int32[np.ndarray, "N R"],
    sample_ids: Int64[np.ndarray, " N"],
    *,
    config: SpanCorruption,
    sentinel_ids: Sequence[int],
    start_id: int,
    end_id: int,
    seed: int,
) -> dict[str, Int32[np.ndarray, "N _"]]:
    """Sources and targets out of rows of text; a pure function of (seed, sample id, tokens) for each row.

    The k-th span that is cut out leaves sentinel k in the source; the target is each sentinel followed by its span:
    `a b c d e` without `b` and `d e` is `a <0> c <1> </s>` and `<0> b <1> d e </s>`. Every way to cut a row into so
    many spans is as likely as any other.

    Args:
      tokens: rows without padding, R at least 2.
      sample_ids: the number of every row in the data's order: its spans are its own, whoever asks for it.
      config: how much is cut out.
      sentinel_ids: of the sentinels, in the order of their use; no token of a text.
      start_id: what the decoder reads first.
      end_id: closes sources and targets.
      seed: of the run.

    Returns:
      int32 `sources` [N, config.source_length(R)]; `targets` and `tokens`, what the decoder has read before it writes
      each of them, [N, config.target_length(R)].

    Raises:
      UsageError: a row needs more sentinels than there are, or is too short.

    >>> made = corrupt_spans(
    ...     np.arange(1, 11, dtype=np.int32)[None], np.array([0]), config=SpanCorruption(rate=0.3),
    ...     sentinel_ids=(99, 98), start_id=0, end_id=50, seed=0,
    ... )
    >>> [int((made[name] == 99).sum()) for name in ("sources", "targets", "tokens")]
    [1, 1, 1]
    """
    num_rows, length = tokens.shape
    if length < 2:
        raise UsageError(f"a row of {length} tokens has none to cut out; use at least 2")
    num_spans = config.num_spans(length)
    if num_spans > len(sentinel_ids):
        raise UsageError(
            f"a row of {length} tokens is cut in {num_spans} spans and there are {len(sentinel_ids)} sentinels; use "
            "shorter rows, longer spans, or a vocabulary with more sentinels"
        )
    is_cut = _cut_mask(num_rows, length, sample_ids, config, seed)
    begins = np.diff(is_cut, axis=1, prepend=True)
    sentinels = np.asarray(sentinel_ids, np.int32)
    # A row begins with kept tokens, so kept run k comes before span k, and both have sentinel k.
    of_run = sentinels[(np.cumsum(begins, axis=1) - 1) // 2]
    ends = np.full((num_rows, 1), end_id, np.int32)
    sources, targets = (
        np.concatenate([np.where(gone, of_run, tokens)[~gone | begins].reshape(num_rows, -1), ends], axis=1)
        for gone in (is_cut, ~is_cut)
    )
    starts = np.full((num_rows, 1), start_id, np.int32)
    return {"sources": sources, "tokens": np.concatenate([starts, targets[:, :-1]], axis=1), "targets": targets}


def _cut_mask(
    num_rows: int, length: int, sample_ids: Int64[np.ndarray, " N"], config: SpanCorruption, seed: int
) -> Bool[np.ndarray, "N R"]:
    """True where a token is cut out: kept and cut runs in turn, a kept one first, so many of each in every row."""
    num_cut, num_spans = config.num_cut(length), config.num_spans(length)
    runs = np.empty((num_rows, num_spans, 2), np.int64)
    runs[..., 0] = _partitions(length - num_cut, num_spans, draws(seed, "kept", sample_ids, length - num_cut - 1))
    runs[..., 1] = _partitions(num_cut, num_spans, draws(seed, "cut", sample_ids, num_cut - 1))
    return np.repeat(np.tile([False, True], num_rows * num_spans), runs.reshape(-1)).reshape(num_rows, length)


def _partitions(total: int, num_parts: int, keys: np.ndarray) -> Int64[np.ndarray, "N K"]:
    """For each row of random keys [N, total - 1] one of the partitions of `total` in parts of at least 1."""
    num_rows = len(keys)
    chosen = np.argsort(keys, axis=1, kind="stable")[:, : num_parts - 1]
    bounds = np.zeros((num_rows, num_parts + 1), np.int64)
    bounds[:, 1:-1] = np.sort(chosen, axis=1) + 1
    bounds[:, -1] = total
    return np.diff(bounds, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutSpans:
    """Rows of text as sources and targets; see `corrupt_spans`, which has the attributes as arguments.

    Attributes:
      target_length: of a target; what a row's own leaves of it is filled up, and nothing is predicted there.
      no_target: stands for that in `targets`.
    """

    config: SpanCorruption
    sentinel_ids: tuple[int, ...]
    start_id: int
    end_id: int
    seed: int
    target_length: int
    no_target: int

    def applied(self, batch: dict[str, np.ndarray], sample_ids: Int64[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """`sources`, `tokens` and `targets` of the rows `batch["tokens"]`."""
        made = corrupt_spans(
            batch["tokens"],
            sample_ids,
            config=self.config,
            sentinel_ids=self.sentinel_ids,
            start_id=self.start_id,
            end_id=self.end_id,
            seed=self.seed,
        )
        room = ((0, 0), (0, self.target_length - made["targets"].shape[1]))
        return {
            "sources": made["sources"],
            "tokens": np.pad(made["tokens"], room, constant_values=self.start_id),
            "targets": np.pad(made["targets"], room, constant_values=self.no_target),
        }
