"""Rotary position embedding."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from jaxscale.nn.config import RopeScaling


def rotate(
    x: Float32[Array, "B S H C"], positions: Int[Array, "#B S"], base: float, scaling: RopeScaling | None = None
) -> Float32[Array, "B S H C"]:
    """Turns each pair (x[c], x[c + C/2]) by the angle positions * base^(-2c/C).

    Args:
      x: queries or keys; C is even.
      positions: the position of every token.
      base: the longest wavelength is about 2 pi base.
      scaling: to a longer context; None for none.

    Reference: Su et al. 2021, https://arxiv.org/abs/2104.09864, in the half-split layout of Llama.

    >>> rotate(jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1), jnp.int32), 10000.0)[0, 0, 0]
    Array([1., 1., 1., 1.], dtype=float32)
    """
    half = x.shape[-1] // 2
    frequencies = jnp.asarray(base, jnp.float32) ** (-jnp.arange(half, dtype=jnp.float32) / jnp.float32(half))
    if scaling is not None:
        frequencies = scaled_frequencies(frequencies, scaling)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def scaled_frequencies(frequencies: Float32[Array, " F"], scaling: RopeScaling) -> Float32[Array, " F"]:
    """Frequencies, in radians per token, for a context `scaling.factor` times as long.

    Those that turn at least `high_frequency_factor` times within the original context are kept, those that turn at most
    `low_frequency_factor` times are divided by the factor, and between the two it goes linearly in the turns.

    >>> scaling = RopeScaling(
    ...     factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=100
    ... )
    >>> turns_in_100 = jnp.array([5.0, 2.5, 0.5])
    >>> scaled = scaled_frequencies(turns_in_100 * 2 * jnp.pi / 100, scaling)
    >>> [round(float(frequency) * 100 / 2 / math.pi, 4) for frequency in scaled]
    [5.0, 1.4063, 0.0625]
    """
    turns = frequencies * (scaling.original_max_positions / (2 * math.pi))
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)
