"""Normalisation over the model dim, in float32: LayerNorm and RMSNorm."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, the bias where it has one.

    Reference: Ba, Kiros, Hinton 2016, https://arxiv.org/abs/1607.06450
    """

    def __init__(self, d_model: int, *, epsilon: float, use_bias: bool):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((d_model,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((d_model,), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float32[Array, "*B D"]:
        """Returns the normalised x in float32."""
        y = _standardised(x.astype(jnp.float32), self.epsilon) * _as_row(self.scale[...], x.ndim)
        return y if self.bias is None else y + _as_row(self.bias[...], x.ndim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardised(x: Float32[Array, "*B D"], epsilon: float) -> Float32[Array, "*B D"]:
    """(x - mean) / sqrt(variance + epsilon), whose backward pass reads the result: as derived it keeps x - mean too."""
    return _standardised_forward(x, epsilon)[0]


def _standardised_forward(
    x: Float32[Array, "*B D"], epsilon: float
) -> tuple[Float32[Array, "*B D"], tuple[Float32[Array, "*B D"], Float32[Array, "*B 1"]]]:
    centred = x - x.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    standardised = centred * factor
    return standardised, (standardised, factor)


def _standardised_backward(
    epsilon: float,
    kept: tuple[Float32[Array, "*B D"], Float32[Array, "*B 1"]],
    cotangent: Float32[Array, "*B D"],
) -> tuple[Float32[Array, "*B D"]]:
    standardised, factor = kept
    # What is along the mean, and along the standardised x itself, changes neither.
    along = standardised * (cotangent * standardised).mean(axis=-1, keepdims=True)
    return (factor * (cotangent - cotangent.mean(axis=-1, keepdims=True) - along),)


_standardised.defvjp(_standardised_forward, _standardised_backward)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale.

    Reference: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467
    """

    def __init__(self, d_model: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((d_model,), jnp.float32))

    def __call__(self, x: Float[Array, "*B D"]) -> Float32[Array, "*B D"]:
        """Returns the normalised x in float32."""
        x = x.astype(jnp.float32)
        mean_square = jnp.square(x).mean(axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.epsilon) * _as_row(self.scale[...], x.ndim)


def make_norm(
    name: Literal["layernorm", "rmsnorm"], d_model: int, *, epsilon: float, use_bias: bool
) -> LayerNorm | RMSNorm:
    """The norm called `name`; an RMSNorm has no bias, whatever is asked."""
    if name == "rmsnorm":
        return RMSNorm(d_model, epsilon=epsilon)
    return LayerNorm(d_model, epsilon=epsilon, use_bias=use_bias)


def _as_row(weight: Float[Array, " D"], ndim: int) -> Float32[Array, "..."]:
    return weight.astype(jnp.float32).reshape((1,) * (ndim - 1) + weight.shape)
