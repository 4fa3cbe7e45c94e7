"""Attention as one call of a program: who may read whom as a rule, and a name by which the call is found again.

What is called is the plain `attend`, so that whatever reads or counts the program (a plan, FLOPs, memory) sees its
matmuls. Where the program for a platform is made, the call may be replaced as a whole; see `attention_kernels`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxscale.nn.attention_plain import attend

# A name is all that jax keeps of a jitted function with its call. This one is told from a user's by its beginning.
_NAME, _BETWEEN = "jaxscale_attention", "__"
_CAUSAL, _SCALED = "causal", "scaled"
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
    """What a call's name says.

    Attributes:
      causal: whether no query reads to its right.
      scaled: whether scores are divided by sqrt(C).
      operands: what it takes after query, key and value, in the order of `_OPERANDS`.
    """

    causal: bool
    scaled: bool
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the function that is called.

        >>> AttentionCall(causal=True, scaled=False, operands=("allowed",)).name
        'jaxscale_attention__causal__allowed'
        """
        said = [_CAUSAL] * self.causal + [_SCALED] * self.scaled
        return _BETWEEN.join([_NAME, *said, *self.operands])

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """What `name` wrote; None for the name of anything else."""
        first, *said = name.split(_BETWEEN)
        if first != _NAME:
            return None
        operands = tuple(operand for operand in _OPERANDS if operand in said)
        return cls(causal=_CAUSAL in said, scaled=_SCALED in said, operands=operands)

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
    function = _function(call, jnp.dtype(compute_dtype), dropout_rate)
    made: Float32[Array, "B S H C"] = function(query, key, value, *given.values())
    return made


@functools.lru_cache(maxsize=64)
def _function(call: AttentionCall, compute_dtype: jnp.dtype, dropout_rate: float) -> Callable[..., jax.Array]:
    def run(query: jax.Array, key: jax.Array, value: jax.Array, *operands: jax.Array) -> jax.Array:
        given = dict(zip(call.operands, operands, strict=True))
        return attend(
            query,
            key,
            value,
            given.get("allowed"),
            compute_dtype=compute_dtype,
            bias=given.get("bias"),
            scaled=call.scaled,
            dropout_rate=dropout_rate,
            dropout_key=given.get("dropout_key"),
        )

    run.__name__ = run.__qualname__ = call.name
    return jax.jit(run)
