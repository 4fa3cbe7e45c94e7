"""softmax(Q K^T) V as it is written: the reference of every kernel, and what runs where there is none."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Key

from jaxscale.nn.dropout import dropout
from jaxscale.nn.linear import contract

# Far below any score, and finite, so that a row with nothing to attend to gives numbers and not NaN.
MASKED = -1e30


def attend(
    query: Float[Array, "B S H C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    allowed: Bool[Array, "#B #S T"] | None,
    *,
    compute_dtype: DTypeLike,
    bias: Float32[Array, "#B H S T"] | None = None,
    scaled: bool = True,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float32[Array, "B S H C"]:
    """softmax(query key^T / sqrt(C) + bias) value, query head h reading key-value head h // (H / K).

    Args:
      query: H is a multiple of K.
      key: what is compared with queries.
      value: what is mixed.
      allowed: which of the T positions each of the S may read; the weight of the others is exactly zero. None: all.
      compute_dtype: of the two contractions; the softmax is in float32.
      bias: added to the scores; None for none.
      scaled: whether scores are divided by sqrt(C).
      dropout_rate: of the attention weights.
      dropout_key: None for none.

    Reference: Vaswani et al. 2017, section 3.2; Ainslie et al. 2023 (GQA), https://arxiv.org/abs/2305.13245
    """
    (b, s, h, c), k = query.shape, key.shape[2]
    query = query / jnp.asarray(math.sqrt(c), query.dtype) if scaled else query
    grouped = query.reshape(b, s, k, h // k, c)
    # [B K S G T]
    scores = contract(grouped, key, contracted=((4,), (3,)), batch=((0, 2), (0, 2)), compute_dtype=compute_dtype)
    if bias is not None:
        scores = scores + bias.reshape(-1, k, h // k, *bias.shape[2:]).transpose(0, 1, 3, 2, 4)
    if allowed is not None:
        scores = jnp.where(allowed[:, None, :, None, :], scores, jnp.float32(MASKED))
    weights = dropout(jax.nn.softmax(scores, axis=-1), dropout_rate, dropout_key).astype(compute_dtype)
    # [B K S G C]
    mixed = contract(weights, value, contracted=((4,), (1,)), batch=((0, 1), (0, 2)), compute_dtype=compute_dtype)
    return mixed.transpose(0, 2, 1, 3, 4).reshape(b, s, h, c)
