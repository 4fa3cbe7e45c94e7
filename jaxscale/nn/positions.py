"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int


def rotate(x: Float32[Array, "B S H C"], positions: Int[Array, "#B S"], base: float) -> Float32[Array, "B S H C"]:
    """Turns each pair (x[c], x[c + C/2]) by the angle positions * base^(-2c/C).

    Args:
      x: queries or keys; C is even.
      positions: the position of every token.
      base: the longest wavelength is about 2 pi base.

    Reference: Su et al. 2021, https://arxiv.org/abs/2104.09864, in the half-split layout of Llama.

    >>> rotate(jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1), jnp.int32), 10000.0)[0, 0, 0]
    Array([1., 1., 1., 1.], dtype=float32)
    """
    half = x.shape[-1] // 2
    frequencies = jnp.asarray(base, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / jnp.float32(half))
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
