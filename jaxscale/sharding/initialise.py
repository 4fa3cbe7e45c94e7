"""Puts parameters and state into their shards: made there, or from the host, and never whole on a device."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxscale.sharding.layouts import Layouts, StoredLayout, store_leaves

_NONE: Mapping[int, StoredLayout] = {}


def initialise(make: Callable[[], Any], shardings: Any, layouts: Layouts = _NONE) -> Any:
    """Makes a tree of arrays straight into its shards: neither the host nor any device ever holds the whole.

    Args:
      make: returns a tree of arrays, in their logical order; traceable.
      shardings: a tree of shardings like it.
      layouts: of the leaves that are stored in another order, by their position in `jax.tree.leaves`.

    Returns:
      The tree as it is stored.
    """
    return jax.jit(lambda: store_leaves(make(), layouts), out_shardings=shardings)()


def place(tree: Any, shardings: Any, layouts: Layouts = _NONE) -> Any:
    """Copies a tree from the host, every device getting its own part of each leaf and no more.

    Args:
      tree: host (numpy) arrays, in their logical order.
      shardings: a tree of shardings like it.
      layouts: of the leaves that are stored in another order, by their position in `jax.tree.leaves`.

    Returns:
      The tree as it is stored, on the devices.
    """
    return jax.tree.map(_placed, store_leaves(tree, layouts), shardings)


def _placed(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
