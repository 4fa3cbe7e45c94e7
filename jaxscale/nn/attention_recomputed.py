"""Attention that keeps no weights between the passes: the backward pass makes them again, and makes them turned.

The plain attention keeps its masked scores and its weights, [B H S T] of each, and contracts them over queries in the
backward pass, along which they do not lie. Here the logarithm of a row's sum of exponentials is kept, as by fused
kernels, and the backward pass makes the weights with keys before queries, as two of its three products with them read
them. It is written in jax's own operations, so that it runs on any platform; where there is a fused kernel, that is
better.

Reference: Dao et al. 2022 (FlashAttention), section 3.1 and appendix B.2, https://arxiv.org/abs/2205.14135
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxscale.nn.attention_plain import MASKED
from jaxscale.nn.linear import contract

# Batch dims of the products: examples and key-value heads.
_HEADS = ((0, 1), (0, 1))


def attend_recomputing(
    query: Float[Array, "B S H C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    query_groups: Int[Array, "B S"] | None = None,
    key_groups: Int[Array, "B T"] | None = None,
    *,
    scaled: bool,
) -> Float32[Array, "B S H C"]:
    """softmax(query key^T / sqrt(C)) value, where query s reads the keys of its own group.

    A query whose group has no key gets the mean of all values, as from the plain attention, and has no gradient.

    Args:
      query: in the compute dtype, as the others are; H is a multiple of K, and query head h reads key-value head
        h // (H / K).
      key: what is compared with queries.
      value: what is mixed.
      query_groups: None, and then of the keys too: all are of one group.
      key_groups: of every key.
      scaled: whether scores are divided by sqrt(C).
    """
    (b, s, h, c), k = query.shape, key.shape[2]
    query = query / jnp.asarray(math.sqrt(c), query.dtype) if scaled else query
    # The queries of one key-value head are rows: position after position, in each the heads of its group.
    rows = query.reshape(b, s, k, h // k, c).transpose(0, 2, 1, 3, 4).reshape(b, k, s * (h // k), c)
    allowed = None
    if query_groups is not None and key_groups is not None:
        allowed = jnp.repeat(query_groups, h // k, axis=1)[:, None, :, None] == key_groups[:, None, None, :]
    mixed = _attend(rows, key.swapaxes(1, 2), value.swapaxes(1, 2), allowed)
    return mixed.reshape(b, k, s, h // k, c).transpose(0, 2, 1, 3, 4).reshape(b, s, h, c)


class _Kept(NamedTuple):
    """What the backward pass reads: the operands, the result, and the logarithm of each row's sum of exponentials."""

    query: Float[Array, "B K R C"]
    key: Float[Array, "B K T C"]
    value: Float[Array, "B K T C"]
    allowed: Bool[Array, "B 1 R T"] | None
    log_sum: Float32[Array, "B K R"]
    mixed: Float32[Array, "B K R C"]


@jax.custom_vjp
def _attend(
    query: Float[Array, "B K R C"],
    key: Float[Array, "B K T C"],
    value: Float[Array, "B K T C"],
    allowed: Bool[Array, "B 1 R T"] | None,
) -> Float32[Array, "B K R C"]:
    return _forward(query, key, value, allowed)[0]


def _forward(
    query: Float[Array, "B K R C"],
    key: Float[Array, "B K T C"],
    value: Float[Array, "B K T C"],
    allowed: Bool[Array, "B 1 R T"] | None,
) -> tuple[Float32[Array, "B K R C"], _Kept]:
    product = functools.partial(contract, batch=_HEADS, compute_dtype=query.dtype)
    # [B K R T]
    scores = product(query, key, contracted=((3,), (3,)))
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    largest = scores.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(scores - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    mixed = product(exponentials, value, contracted=((3,), (2,))) / total
    return mixed, _Kept(query, key, value, allowed, (largest + jnp.log(total))[..., 0], mixed)


def _backward(
    kept: _Kept, cotangent: Float32[Array, "B K R C"]
) -> tuple[Float[Array, "B K R C"], Float[Array, "B K T C"], Float[Array, "B K T C"], None]:
    query, key, value, allowed, log_sum, mixed = kept
    product = functools.partial(contract, batch=_HEADS, compute_dtype=query.dtype)
    # [B K T R], as all that follow
    weights = jnp.exp(product(key, query, contracted=((3,), (3,))) - log_sum[:, :, None])
    if allowed is not None:
        weights = jnp.where(allowed.swapaxes(2, 3), weights, 0.0)
    # A weight's slope is how much better its value fits the cotangent than the mixture of all does.
    fits = product(value, cotangent, contracted=((3,), (3,)))
    slopes = weights * (fits - (cotangent * mixed).sum(axis=-1)[:, :, None])
    of_query = product(slopes, key, contracted=((2,), (2,)))
    of_key = product(slopes, query, contracted=((3,), (2,)))
    of_value = product(weights, cotangent, contracted=((3,), (2,)))
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype), None


_attend.defvjp(_forward, _backward)
