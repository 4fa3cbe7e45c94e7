"""A learned bias on attention scores by the distance between two tokens, one for every head and range of distances."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int, Key

from jaxscale.nn.config import NUM_RELATIVE_BUCKETS
from jaxscale.nn.keys import named_key

# The distance from which on all are one bucket, as in all sizes of T5.
MAX_DISTANCE = 128


def distance_buckets(relative: Int[Array, "..."], *, both_ways: bool) -> Int[Array, "..."]:
    """The bucket of a key's position less the query's: near distances one by one, far ones by their logarithm.

    Args:
      relative: position of the key minus that of the query.
      both_ways: whether keys to the right count too, in the upper half of the buckets; else they are all bucket 0.

    Returns:
      int32 in [0, NUM_RELATIVE_BUCKETS).

    Reference: Raffel et al. 2019 (T5), section 2.1, https://arxiv.org/abs/1910.10683

    >>> distance_buckets(jnp.array([0, -1, -15, -16, -127, -500, 3]), both_ways=False).tolist()
    [0, 1, 15, 16, 31, 31, 0]
    >>> distance_buckets(jnp.array([0, -7, 7, 500]), both_ways=True).tolist()
    [0, 7, 23, 31]
    """
    num_buckets = NUM_RELATIVE_BUCKETS // 2 if both_ways else NUM_RELATIVE_BUCKETS
    first = jnp.where(relative > 0, num_buckets, 0) if both_ways else jnp.zeros_like(relative)
    distance = jnp.abs(relative) if both_ways else jnp.maximum(-relative, 0)
    num_exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / num_exact) / math.log(MAX_DISTANCE / num_exact)
    far = num_exact + (ratio * (num_buckets - num_exact)).astype(jnp.int32)
    return (first + jnp.where(distance < num_exact, distance, jnp.minimum(far, num_buckets - 1))).astype(jnp.int32)


class RelativePositions(nnx.Module):
    """The biases [buckets H] of all layers of a stack."""

    def __init__(self, num_heads: int, *, both_ways: bool, stddev: float, key: Key[Array, ""]):
        """Makes the table.

        Args:
          num_heads: H.
          both_ways: whether a token reads to its right too.
          stddev: of the initial biases.
          key: random key.
        """
        self.both_ways = both_ways
        shape = (NUM_RELATIVE_BUCKETS, num_heads)
        draw = jax.random.truncated_normal(named_key(key, "table"), -2, 2, shape, jnp.float32)
        self.table = nnx.Param(stddev * draw)

    def __call__(
        self, positions: Int[Array, "#B S"], key_positions: Int[Array, "#B T"] | None = None
    ) -> Float32[Array, "#B H S T"]:
        """Returns what is added to the score of every query (third dim) and key (fourth).

        Args:
          positions: of the queries.
          key_positions: of the keys; None: the same.
        """
        keys = positions if key_positions is None else key_positions
        relative = keys[:, None, :] - positions[:, :, None]
        buckets = distance_buckets(relative, both_ways=self.both_ways)
        biases = jnp.take(self.table[...].astype(jnp.float32), buckets, axis=0, mode="clip")
        return biases.transpose(0, 3, 1, 2)
