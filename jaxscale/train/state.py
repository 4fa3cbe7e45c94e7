"""The state of a training run: one tree of arrays, which is all that a checkpoint holds, and its hash."""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from jaxscale import frozen
from jaxscale.sharding.initialise import initialise, place
from jaxscale.sharding.layouts import Layouts, store_leaves
from jaxscale.train.objective import Params

# {"params", "opt_state", "step", "num_skipped", "num_skipped_in_a_row"}; counters are int32 scalars.
State = dict[str, Any]


def new_state(params: Params, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step. Traceable.

    Args:
      params: float32 parameters, perhaps with some that are frozen; see `jaxscale.frozen`.
      optimizer: the transformation whose state goes along.
    """
    counters = {name: jnp.zeros((), jnp.int32) for name in ("step", "num_skipped", "num_skipped_in_a_row")}
    return {"params": params, "opt_state": optimizer.init(frozen.trained(params)), **counters}


def place_new_state(
    init_params: Callable[[], Params], optimizer: optax.GradientTransformation, shardings: Any, layouts: Layouts
) -> State:
    """Makes the first state straight into its shards: no device ever holds more than its part.

    Args:
      init_params: returns parameters; traced.
      optimizer: the transformation whose state goes along.
      shardings: a tree of shardings like the state.
      layouts: of the leaves that are stored in another order, by position in `jax.tree.leaves` of the state.

    Returns:
      The state as it is stored.
    """
    return initialise(lambda: new_state(init_params(), optimizer), shardings, layouts)


def place_params(params: Params, optimizer: optax.GradientTransformation, shardings: Any, layouts: Layouts) -> State:
    """As `place_new_state`, from host parameters, which are copied: the state's buffers are donated later.

    Args:
      params: host (numpy) parameters, in their logical order.
      optimizer: the transformation whose state goes along.
      shardings: a tree of shardings like the state.
      layouts: as for `place_new_state`.

    Returns:
      The state as it is stored.
    """

    def make(tree: Params) -> State:
        stored: State = store_leaves(new_state(jax.tree.map(jnp.copy, tree), optimizer), layouts)
        return stored

    return jax.jit(make, out_shardings=shardings)(place(params, shardings["params"]))


def state_hash(state: State) -> str:
    """SHA-256 over every leaf's path, dtype, shape and bytes, in path order: 64 hexadecimal digits.

    It depends on the values alone, not on the mesh they are spread over.

    >>> state_hash({"b": jnp.ones(2), "a": jnp.zeros(())})[:8]
    '0fcae665'
    """
    with_paths = jax.tree_util.tree_leaves_with_path(state)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in with_paths}
    digest = hashlib.sha256()
    for path in sorted(leaves):
        value = np.ascontiguousarray(host_value(leaves[path]))
        shape = ",".join(map(str, np.shape(leaves[path])))
        digest.update(f"{path} {value.dtype} [{shape}]\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def host_value(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array in this process's memory, wherever its shards are."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
