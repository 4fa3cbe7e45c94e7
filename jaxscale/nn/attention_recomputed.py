"""Attention that keeps no weights between the passes: the backward pass makes them again, and makes them turned.

The plain attention keeps its masked scores and its weights, [B H S T] of each, and contracts them over queries in the
backward pass, along which they do not lie. Here a row's largest score and its sum of exponentials are kept, as by fused
kernels, and the backward pass makes the weights with keys before queries, as two of its four products read them. It is
written in jax's own operations, so that it runs on any platform; where there is a fused kernel, that is better.

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

# Positions of dims. Queries are [B S K G C], head (k, g) reading key-value head k; keys and values are [B T K C].
_OF_HEADS = ((0, 2), (0, 2))
# Where the left operand is weights, [B K ...].
_OF_WEIGHTS = ((0, 1), (0, 2))


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
    allowed = None
    if query_groups is not None and key_groups is not None:
        allowed = query_groups[:, :, None] == key_groups[:, None, :]
    return _attend(query.reshape(b, s, k, h // k, c), key, value, allowed).reshape(b, s, h, c)


class _Kept(NamedTuple):
    """What the backward pass reads: the operands, the result, and of each row its largest score and the sum."""

    query: Float[Array, "B S K G C"]
    key: Float[Array, "B T K C"]
    value: Float[Array, "B T K C"]
    allowed: Bool[Array, "B S T"] | None
    largest: Float32[Array, "B K S G"]
    total: Float32[Array, "B K S G"]
    mixed: Float32[Array, "B S K G C"]


@jax.custom_vjp
def _attend(
    query: Float[Array, "B S K G C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    allowed: Bool[Array, "B S T"] | None,
) -> Float32[Array, "B S K G C"]:
    return _forward(query, key, value, allowed)[0]


def _forward(
    query: Float[Array, "B S K G C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    allowed: Bool[Array, "B S T"] | None,
) -> tuple[Float32[Array, "B S K G C"], _Kept]:
    product = functools.partial(contract, compute_dtype=query.dtype)
    # [B K S G T]
    scores = product(query, key, contracted=((4,), (3,)), batch=_OF_HEADS)
    if allowed is not None:
        scores = jnp.where(allowed[:, None, :, None, :], scores, MASKED)
    largest = scores.max(axis=-1)
    exponentials = jnp.exp(scores - largest[..., None])
    total = exponentials.sum(axis=-1)
    # [B K S G C]
    mixed = product(exponentials, value, contracted=((4,), (1,)), batch=_OF_WEIGHTS) / total[..., None]
    mixed = mixed.transpose(0, 2, 1, 3, 4)
    return mixed, _Kept(query, key, value, allowed, largest, total, mixed)


def _backward(
    kept: _Kept, cotangent: Float32[Array, "B S K G C"]
) -> tuple[Float[Array, "B S K G C"], Float[Array, "B T K C"], Float[Array, "B T K C"], None]:
    query, key, value, allowed, largest, total, mixed = kept
    product = functools.partial(contract, compute_dtype=query.dtype)
    readable = None if allowed is None else allowed.transpose(0, 2, 1)[:, None, :, :, None]
    # [B K T S G], as all that follow
    scores = product(key, query, contracted=((3,), (4,)), batch=_OF_HEADS)
    if readable is not None:
        scores = jnp.where(readable, scores, MASKED)
    weights = jnp.exp(scores - largest[:, :, None]) * (1 / total)[:, :, None]
    # A weight's slope is how much better its value fits the cotangent than the mixture of all does.
    of_mixture = (cotangent * mixed).sum(axis=-1).transpose(0, 2, 1, 3)
    fits = product(value, cotangent, contracted=((3,), (4,)), batch=_OF_HEADS)
    slopes = weights * (fits - of_mixture[:, :, None])
    if readable is not None:
        slopes = jnp.where(readable, slopes, 0.0)
    # [B K T C], [B K T C], [B K S G C]
    of_value = product(weights, cotangent, contracted=((3, 4), (1, 3)), batch=_OF_WEIGHTS)
    of_key = product(slopes, query, contracted=((3, 4), (1, 3)), batch=_OF_WEIGHTS)
    of_query = product(slopes, key, contracted=((2,), (1,)), batch=_OF_WEIGHTS)
    return (
        of_query.transpose(0, 2, 1, 3, 4).astype(query.dtype),
        of_key.transpose(0, 2, 1, 3).astype(key.dtype),
        of_value.transpose(0, 2, 1, 3).astype(value.dtype),
        None,
    )


_attend.defvjp(_forward, _backward)
