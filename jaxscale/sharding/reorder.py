"""Brings leaves that are on a mesh into their stored order and back: leaf by leaf, from their shards into their shards.

The order of storage suits one mesh. Whatever leaves a training step is in the logical order: checkpoints, which any
mesh restores, evaluation, hashes and exports.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxscale.sharding.layouts import Layouts, StoredLayout


def store_on_mesh(tree: Any, layouts: Layouts) -> Any:
    """A tree as it is stored; leaves without a layout are passed on as they are.

    Args:
      tree: jax arrays, in their logical order.
      layouts: by position in `jax.tree.leaves`.
    """
    return _reordered(StoredLayout.to_stored, tree, layouts)


def restore_on_mesh(tree: Any, layouts: Layouts) -> Any:
    """The exact inverse of `store_on_mesh`."""
    return _reordered(StoredLayout.to_logical, tree, layouts)


def _reordered(reorder: Callable[[StoredLayout, Any], Any], tree: Any, layouts: Layouts) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    made = [
        _program(reorder, layouts[i], leaf.sharding)(leaf) if i in layouts else leaf for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, made)


@functools.lru_cache(maxsize=256)
def _program(
    reorder: Callable[[StoredLayout, Any], Any], layout: StoredLayout, sharding: jax.sharding.Sharding
) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(functools.partial(reorder, layout), in_shardings=sharding, out_shardings=sharding)
