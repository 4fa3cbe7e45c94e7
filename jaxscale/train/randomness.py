"""Random keys: `fold_in` of a name and a step into the run's seed, never the order in which things happen to run."""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray


def named_key(seed: int, name: str) -> PRNGKeyArray:
    """The key of everything called `name` in the run of `seed`.

    Args:
      seed: of the run, below 2**32.
      name: what the key is for, as `params` or `dropout`.

    >>> bool(jax.numpy.all(jax.random.key_data(named_key(1, "params")) == jax.random.key_data(named_key(1, "loss"))))
    False
    """
    # The implementation is named, so that no jax option can change a run's numbers.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode()))


def step_key(seed: int, name: str, step: Int[Array, ""] | int) -> PRNGKeyArray:
    """The key of `name` at one step; `step` may be traced."""
    return jax.random.fold_in(named_key(seed, name), step)
