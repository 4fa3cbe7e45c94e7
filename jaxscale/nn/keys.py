"""Random keys by name, so that a parameter's values never depend on the order in which others were made."""

import zlib

import jax
from jaxtyping import Array, Key


def named_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The key of `name` under `key`.

    Args:
      key: the parent's key.
      name: any string; equal names give equal keys.

    >>> same = named_key(jax.random.key(0), "query") == named_key(jax.random.key(0), "query")
    >>> bool(same), bool(named_key(jax.random.key(0), "query") == named_key(jax.random.key(0), "key"))
    (True, False)
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def numbered_keys(key: Key[Array, ""], num_keys: int) -> Key[Array, " {num_keys}"]:
    """Keys 0 to num_keys - 1 under `key`; the first ones stay the same when there are more.

    >>> numbered_keys(jax.random.key(0), 3).shape
    (3,)
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.arange(num_keys))
