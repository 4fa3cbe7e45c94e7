"""How an array is cut into chunks, and which of its values a process writes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxscale.errors import DataError

# Larger ones leave cores idle and make a slice of rows read more, smaller ones cost an fsync each (arrays.md).
CHUNK_BYTES = 8 << 20

Array = Shaped[np.ndarray, "..."] | Shaped[jax.Array, "..."]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunked:
    """A host's part of an array: which values go where, and how the array is cut into chunks.

    Attributes:
      shape: the whole array's shape.
      parts: index in the whole array, and the values there.
      chunk_shape: of the grid.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[tuple[Index, np.ndarray], ...]
    chunk_shape: tuple[int, ...]


def chunk(value: Array) -> Chunked:
    """Says how a value is cut and which of its parts this process writes; the parts may share the value's memory."""
    refuse_keys(value)
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        host = np.asarray(value)
        whole = tuple(slice(0, size) for size in host.shape)
        grid = chunk_shape(host.shape, host.dtype.itemsize)
        return Chunked(shape=host.shape, dtype=host.dtype, parts=((whole, host),), chunk_shape=grid)
    shard_shape = value.sharding.shard_shape(value.shape)
    parts = tuple((s.index, np.asarray(s.data)) for s in value.addressable_shards if s.replica_id == 0)
    grid = chunk_shape(shard_shape, value.dtype.itemsize, must_divide=True)
    return Chunked(shape=value.shape, dtype=np.dtype(value.dtype), parts=parts, chunk_shape=grid)


def chunk_shape(shape: tuple[int, ...], itemsize: int, *, must_divide: bool = False) -> tuple[int, ...]:
    """The chunk of the grid of an array: whole trailing dims, leading ones cut, at most `CHUNK_BYTES`.

    Args:
      shape: of the array, or of one shard of it.
      itemsize: bytes of one value.
      must_divide: whether each dim of the chunk has to divide that of `shape`.

    >>> chunk_shape((2500, 1024), 4)
    (1250, 1024)
    >>> chunk_shape((6, 1024, 1024), 2, must_divide=True)
    (3, 1024, 1024)
    """
    room, sizes = max(1, CHUNK_BYTES // itemsize), []
    for size in reversed(shape):
        taken = max(1, min(size, room))
        room = room // taken if taken == size else 1
        if must_divide:
            taken = next(part for part in range(taken, 0, -1) if size % part == 0)
        elif size:
            taken = -(-size // -(-size // taken))  # as few chunks, of equal size: an edge chunk is filled up on disk
        sizes.append(taken)
    return tuple(reversed(sizes))


def refuse_keys(value: Any) -> None:
    """Raises a DataError for an array of PRNG keys, which has no values to write."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise DataError(f"an array of {value.dtype} can't be written; write jax.random.key_data(key) instead")


def array_of_chunk(file: str) -> str | None:
    """The array that a file below a committed directory is a chunk of, by its name; None for another file.

    >>> array_of_chunk("params/w/c/0/1"), array_of_chunk("params/w/zarr.json")
    ('params/w', None)
    """
    parts = file.split("/")
    while parts and parts[-1].isdecimal():
        parts.pop()
    return "/".join(parts[:-1]) if parts[-1:] == ["c"] else None
