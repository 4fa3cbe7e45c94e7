"""Dropout by a key that is passed in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(x: Float[Array, "*dims"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*dims"]:
    """Zeroes each element with probability `rate` and divides the rest by 1 - rate.

    Args:
      x: any array.
      rate: in [0, 1).
      key: random key; None (as at inference) returns x.

    >>> dropout(jnp.ones(4), 0.5, None)
    Array([1., 1., 1., 1.], dtype=float32)
    """
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))
