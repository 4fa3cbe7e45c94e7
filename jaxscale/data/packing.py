"""Documents put together in rows of one length, block by block, so that little of a row stays empty."""

import array
import bisect
import itertools

import numpy as np
from jaxtyping import Int64

from jaxscale.data.token_dataset import Packs

# Rows that a block of documents fills: more packs tighter, fewer keeps neighbours in a corpus near each other.
_ROWS_PER_BLOCK = 512


def pack(offsets: Int64[np.ndarray, " D+1"], length: int) -> Packs:
    """Rows of `length` tokens out of the documents of a shard; every token of every document is in exactly one row.

    A document longer than a row is cut: its full pieces are rows of their own. The rests of a block are put, longest
    first, each into the fullest row that still has room (best fit decreasing). Rows never reach across blocks, so that
    what a row holds depends on its block alone.

    Args:
      offsets: where documents begin, and the end of the last one.
      length: tokens of a row.

    Reference: Johnson 1973, "Near-optimal bin packing algorithms" (best fit decreasing); Krell et al. 2021, "Efficient
      sequence packing without cross-contamination", https://arxiv.org/abs/2107.02027

    >>> packs = pack(np.array([0, 3, 11, 12]), 4)
    >>> packs.row_ends.tolist(), packs.starts.tolist(), packs.lengths.tolist()
    ([1, 2, 4], [3, 7, 0, 11], [4, 4, 3, 1])
    """
    row_ends, starts, lengths = array.array("Q"), array.array("Q"), array.array("I")
    first = 0
    while first < len(offsets) - 1:
        # The first document in any case, and as many more as fill the block.
        end = int(offsets[first]) + _ROWS_PER_BLOCK * length
        last = max(int(np.searchsorted(offsets, end, "right")) - 1, first + 1)
        for row in _pack_block(offsets[first : last + 1].tolist(), length):
            starts.extend(start for start, _ in row)
            lengths.extend(size for _, size in row)
            row_ends.append(len(starts))
        first = last
    return Packs(
        row_ends=np.array(row_ends, np.uint64), starts=np.array(starts, np.uint64), lengths=np.array(lengths, np.uint32)
    )


def _pack_block(ends: list[int], length: int) -> list[list[tuple[int, int]]]:
    full: list[list[tuple[int, int]]] = []
    rests: list[tuple[int, int]] = []
    for start, end in itertools.pairwise(ends):
        num_full = (end - start) // length
        full += [[(start + place * length, length)] for place in range(num_full)]
        if rest := (end - start) % length:
            rests.append((end - rest, rest))
    shared: list[list[tuple[int, int]]] = []
    # (room, row) of the rows that are not full, ascending.
    rooms: list[tuple[int, int]] = []
    for start, size in sorted(rests, key=lambda piece: (-piece[1], piece[0])):
        at = bisect.bisect_left(rooms, (size, -1))
        room, row = rooms.pop(at) if at < len(rooms) else (length, len(shared))
        if row == len(shared):
            shared.append([])
        shared[row].append((start, size))
        if room > size:
            bisect.insort(rooms, (room - size, row))
    return full + shared
