"""Rows of tokens of any lengths as batches of few shapes: the longest first, padded to a fixed ladder of widths.

A batch has as many rows as fit its tokens, so that a long collection meets about as many shapes as it has widths. Only
the last batch has other rows: a power of two, so that a single row costs a batch of one.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int64

from jaxscale.data.buckets import bucket_for

# Padding costs a text at most 15 tokens up to 256, then at most 31, then 255. A program of six layers compiles in half
# a second, so that fine steps are soon paid for.
WIDTHS = (*range(16, 256, 16), *range(256, 512, 32), *range(512, 8193, 256))

# Of a batch on one device. A core of a CPU computes a batch by itself, fastest while the activations stay in its cache
# (measured: 512 to 1,024 are equal, 2,048 costs 5 %); an accelerator wants enough rows to be busy.
CPU_TOKENS_PER_BATCH = 1024
ACCELERATOR_TOKENS_PER_BATCH = 32768


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthBatch:
    """Which rows are computed together.

    Attributes:
      rows: their numbers (R of them).
      filled: the same, the last one repeated until there are B, so that every row of the batch has a token.
      width: tokens that each is padded to.
    """

    rows: Int64[np.ndarray, " R"]
    filled: Int64[np.ndarray, " B"]
    width: int


def batches_by_length(
    lengths: Int64[np.ndarray, "N"], max_length: int, tokens_per_batch: int, num_devices: int
) -> Iterator[LengthBatch]:
    """Cuts rows into batches, the longest rows first; every row is in one.

    Args:
      lengths: tokens of each row, at most `max_length`.
      max_length: the last width.
      tokens_per_batch: padded tokens of a batch on one device, at most (a longer single row aside).
      num_devices: that share each batch's rows.

    >>> [(b.rows.tolist(), b.filled.tolist(), b.width) for b in batches_by_length(np.array([9, 20, 17, 3]), 40, 64, 1)]
    [([1, 2], [1, 2], 32), ([0, 3], [0, 3], 16)]
    """
    order = np.argsort(-lengths, kind="stable")
    widths = widths_up_to(max_length)
    start = 0
    while start < len(order):
        width = bucket_for(int(lengths[order[start]]), widths)
        num_rows = num_devices * max(1, tokens_per_batch // width)
        rows = order[start : start + num_rows]
        if len(rows) < num_rows:
            per_device = -(-len(rows) // num_devices)
            num_rows = min(num_rows, num_devices * (1 << (per_device - 1).bit_length()))
        filling = np.repeat(rows[-1:], num_rows - len(rows))
        yield LengthBatch(rows=rows, filled=np.concatenate([rows, filling]), width=width)
        start += len(rows)


def widths_up_to(max_length: int) -> tuple[int, ...]:
    """The widths that batches of rows of at most `max_length` tokens are padded to.

    >>> widths_up_to(40)
    (16, 32, 40)
    """
    return (*(width for width in WIDTHS if width < max_length), max_length)


def usual_tokens_per_batch(mesh: Mesh) -> int:
    """Padded tokens of a batch on one device of a mesh that keep it busy."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return CPU_TOKENS_PER_BATCH if on_cpu else ACCELERATOR_TOKENS_PER_BATCH
