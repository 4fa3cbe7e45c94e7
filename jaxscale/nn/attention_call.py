"""Attention as one call of a program: who may read whom as a rule, and a mark by which the call is found again.

What is called is the plain `attend`, so that whatever reads or counts the program (a plan, FLOPs, memory) sees its
matmuls. Where the program for a platform is made, the call may be replaced as a whole; see `attention_kernels`.
"""

import dataclasses

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxscale.nn.attention_plain import attend
from jaxscale.sharding.replaceable import replaceable

# What a call takes after query, key and value, where there is such a thing, in this order.
_OPERANDS = ("allowed", "bias", "query_groups", "key_groups", "dropout_key")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readable:
    """Which of T positions each of S may read: said element by element, and by a rule that needs no [S T] array.

    The rule: query s may read key t if query_groups[s] = key_groups[t] and, if causal, t <= s.

    Attributes:
      allowed: True where it may; None: everywhere.
      causal: whether none may read to its right.
      query_groups: of every query; None, and then of the keys too: all are of one group.
      key_groups: of every key.
    """

    allowed: Bool[Array, "#B #S T"] | None
    causal: bool = False
    query_groups: Int[Array, "B S"] | None = None
    key_groups: Int[Array, "B T"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """What a call computes, as its mark in the program.

    Attributes:
      causal: whether no query reads to its right.
      scaled: whether scores are divided by sqrt(C).
      operands: what it takes after query, key and value.
    """

    causal: bool
    scaled: bool
    operands: tuple[str, ...]

    @property
    def has_rule(self) -> bool:
        """Whether `causal` and the groups say all that `allowed` does."""
        return "allowed" not in self.operands or self.causal or "query_groups" in self.operands


def call_attention(
    query: Float[Array, "B S H C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    readable: Readable,
    *,
    compute_dtype: DTypeLike,
    bias: Float32[Array, "#B H S T"] | None,
    scaled: bool,
    dropout_rate: float,
    dropout_key: Key[Array, ""] | None,
) -> Float32[Array, "B S H C"]:
    """`attend` as one equation of the program; arguments as there."""
    dropout_key = dropout_key if dropout_rate else None
    values = (readable.allowed, bias, readable.query_groups, readable.key_groups, dropout_key)
    given = {name: value for name, value in zip(_OPERANDS, values, strict=True) if value is not None}
    call = AttentionCall(causal=readable.causal, scaled=scaled, operands=tuple(given))

    def plain(query: jax.Array, key: jax.Array, value: jax.Array, *operands: jax.Array) -> jax.Array:
        named = dict(zip(call.operands, operands, strict=True))
        return attend(
            query,
            key,
            value,
            named.get("allowed"),
            compute_dtype=compute_dtype,
            bias=named.get("bias"),
            scaled=scaled,
            dropout_rate=dropout_rate,
            dropout_key=named.get("dropout_key"),
        )

    return replaceable(plain, call, query, key, value, *given.values())
