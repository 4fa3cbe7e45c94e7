"""Stored layouts: how a leaf whose dim holds several parts side by side is stored so that every shard has some of each.

A fused projection [D, 3D] makes queries, keys and values at once. Cut contiguously in two, one device has the queries
and half of the keys, the other the rest. Stored with the pieces dealt out, shard t holds piece t of every part:

    logical   q0 q1 | k0 k1 | v0 v1        stored   q0 k0 v0 | q1 k1 v1
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.errors import UsageError

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredLayout:
    """The order in which one dim of a leaf is stored; the shape is the same as that of the logical leaf.

    Attributes:
      logical_shape: of the leaf, which is also the shape it is stored in.
      dim: the dim that holds the parts.
      parts: their sizes, in their order; they add up to the dim, and each divides by `num_shards`.
      num_shards: how many devices the dim is split over.
    """

    logical_shape: tuple[int, ...]
    dim: int
    parts: tuple[int, ...]
    num_shards: int

    def __post_init__(self) -> None:
        if not 0 <= self.dim < len(self.logical_shape):
            raise UsageError(
                f"dim={self.dim} must be one of the {len(self.logical_shape)} dims of {self.logical_shape}"
            )
        size = self.logical_shape[self.dim]
        if sum(self.parts) != size or min(self.parts, default=0) < 1:
            raise UsageError(f"parts={self.parts} must be positive and add up to dim {self.dim}, which is {size}")
        uneven = [part for part in self.parts if self.num_shards < 1 or part % self.num_shards]
        if uneven:
            raise UsageError(f"a part of {uneven[0]} in parts={self.parts} must divide by num_shards={self.num_shards}")

    def to_stored(self, array: AnyArray) -> AnyArray:
        """The array as it is stored.

        Args:
          array: of the logical shape, in the logical order; numpy or jax.

        >>> layout = StoredLayout(logical_shape=(6,), dim=0, parts=(4, 2), num_shards=2)
        >>> layout.to_stored(np.array([0, 1, 2, 3, 10, 11])).tolist()
        [0, 1, 10, 2, 3, 11]
        """
        self._check(array)
        before, after = self._around()
        pieces = [
            _window(array, self.dim, start, stop).reshape(
                *before, self.num_shards, (stop - start) // self.num_shards, *after
            )
            for start, stop in windows(self.parts)
        ]
        return _concatenate(pieces, self.dim + 1).reshape(self.logical_shape)

    def to_logical(self, array: AnyArray) -> AnyArray:
        """The exact inverse of `to_stored`.

        Args:
          array: of the logical shape, in the stored order; numpy or jax.

        >>> layout = StoredLayout(logical_shape=(6,), dim=0, parts=(4, 2), num_shards=2)
        >>> layout.to_logical(np.array([0, 1, 10, 2, 3, 11])).tolist()
        [0, 1, 2, 3, 10, 11]
        """
        self._check(array)
        before, after = self._around()
        shards = array.reshape(*before, self.num_shards, sum(self.parts) // self.num_shards, *after)
        local = windows(tuple(part // self.num_shards for part in self.parts))
        pieces = [
            _window(shards, self.dim + 1, start, stop).reshape(*before, (stop - start) * self.num_shards, *after)
            for start, stop in local
        ]
        return _concatenate(pieces, self.dim)

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.logical_shape[: self.dim], self.logical_shape[self.dim + 1 :]

    def _check(self, array: Any) -> None:
        if tuple(array.shape) != self.logical_shape:
            raise UsageError(f"array: got shape {tuple(array.shape)}, expected {self.logical_shape}")


# Layouts by the position of a leaf in `jax.tree.leaves` of a tree or of a function's arguments.
Layouts = Mapping[int, StoredLayout]


def store_leaves(tree: Any, layouts: Layouts) -> Any:
    """A tree of logical arrays with the leaves that have a layout as they are stored."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [layouts[i].to_stored(x) if i in layouts else x for i, x in enumerate(leaves)])


def restore_leaves(tree: Any, layouts: Layouts) -> Any:
    """The exact inverse of `store_leaves`: what is exported, or compared with other layouts."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure, [layouts[i].to_logical(x) if i in layouts else x for i, x in enumerate(leaves)]
    )


def windows(parts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where each part starts and stops.

    >>> windows((4, 2))
    [(0, 4), (4, 6)]
    """
    return list(itertools.pairwise((0, *itertools.accumulate(parts))))


def _window(array: AnyArray, axis: int, start: int, stop: int) -> AnyArray:
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _concatenate(pieces: list[AnyArray], axis: int) -> AnyArray:
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces, axis)
    return jnp.concatenate(pieces, axis)
