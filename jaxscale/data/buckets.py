"""A few static lengths that token rows are padded to, so that a compiled step meets few shapes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32, Int64

from jaxscale.errors import UsageError


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `length` tokens.

    Args:
      length: tokens, at least 0.
      buckets: lengths in increasing order.

    Raises:
      UsageError: the largest bucket is too small.

    >>> bucket_for(17, (16, 32, 64))
    32
    """
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise UsageError(f"a row of {length} tokens does not fit the buckets {tuple(buckets)}; truncate it or add a bucket")


def pad_to_bucket(
    ids: Sequence[Sequence[int] | Int32[np.ndarray, "_"]], buckets: Sequence[int], pad_id: int
) -> tuple[Int32[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Pads rows of tokens on the right to the smallest bucket that holds the longest of them.

    Args:
      ids: B rows of token ids, of any lengths.
      buckets: lengths in increasing order.
      pad_id: the token that fills.

    Returns:
      tokens int32 [B, S] and mask bool [B, S], True on the rows' own tokens; S is one of `buckets`.

    >>> tokens, mask = pad_to_bucket([[5, 6, 7], [8]], buckets=(2, 4), pad_id=0)
    >>> tokens.tolist()
    [[5, 6, 7, 0], [8, 0, 0, 0]]
    >>> mask.sum(axis=1).tolist()
    [3, 1]
    """
    lengths = np.fromiter(map(len, ids), np.int64, count=len(ids))
    width = bucket_for(int(lengths.max(initial=0)), buckets)
    mask = np.arange(width) < lengths[:, None]
    tokens = np.full((len(ids), width), pad_id, np.int32)
    if lengths.any():
        tokens[mask] = np.concatenate([np.asarray(row, np.int32) for row in ids])
    return tokens, mask


def choose_buckets(
    lengths: Sequence[int] | Int64[np.ndarray, "N"], num_buckets: int, multiple: int = 8
) -> tuple[int, ...]:
    """The buckets that pad a collection of rows least when each row goes to the smallest that holds it.

    Minimises sum over rows of bucket(row) over all sets of at most `num_buckets` multiples of `multiple`, by dynamic
    programming over the multiples: O(num_buckets * (longest / multiple)**2).

    Args:
      lengths: N row lengths in tokens, at least one.
      num_buckets: the most that may be chosen, at least 1.
      multiple: buckets are multiples of it, tokens.

    Returns:
      At most `num_buckets` lengths, increasing; the last holds the longest row.

    >>> choose_buckets([3, 5, 30, 31], num_buckets=2)
    (8, 32)
    """
    if num_buckets < 1 or len(lengths) == 0:
        raise UsageError(f"got num_buckets={num_buckets} and {len(lengths)} lengths, expected at least 1 of each")
    cells = np.maximum(np.ceil(np.asarray(lengths) / multiple).astype(np.int64), 1)
    rows_up_to = np.cumsum(np.bincount(cells))
    top = len(rows_up_to) - 1
    # cost[j]: least padded total of the rows of up to j cells, with j the last bucket; chosen[b][j]: the bucket before.
    cost = rows_up_to * np.arange(top + 1)
    chosen: list[Int64[np.ndarray, "_"]] = []
    for _ in range(num_buckets - 1):
        options = cost[:, None] + (rows_up_to[None, :] - rows_up_to[:, None]) * np.arange(top + 1)[None, :]
        options[np.tril_indices(top + 1, -1)] = np.iinfo(np.int64).max
        chosen.append(options.argmin(axis=0))
        cost = options.min(axis=0)
    buckets, cell = {top}, top
    for before in reversed(chosen):
        cell = int(before[cell])
        buckets.add(cell)
    return tuple(multiple * b for b in sorted(buckets) if b > 0 and rows_up_to[b] > 0)
