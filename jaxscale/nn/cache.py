"""Keys and values of tokens that were read before, so that a decoder reads each token once."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxscale.nn.config import TransformerConfig


class KeyValues(NamedTuple):
    """What one layer's attention reads; place t of a row belongs to its token at position t.

    Attributes:
      keys: rotated already, where positions are rotary.
      values: of the same tokens.
    """

    keys: Float[Array, "B T K C"]
    values: Float[Array, "B T K C"]

    def written(
        self, keys: Float[Array, "B S K C"], values: Float[Array, "B S K C"], positions: Int[Array, "B S"]
    ) -> "KeyValues":
        """With the keys and values of the tokens at `positions`, each row at its own; what is there is replaced."""
        rows = jnp.arange(positions.shape[0], dtype=positions.dtype)[:, None]
        return KeyValues(self.keys.at[rows, positions].set(keys), self.values.at[rows, positions].set(values))


def empty_caches(
    config: TransformerConfig, num_rows: int, num_positions: int, compute_dtype: DTypeLike = jnp.float32
) -> list[KeyValues]:
    """Room for the keys and values of every layer, zero at first.

    Args:
      config: the decoder.
      num_rows: B.
      num_positions: T: prompt and continuation together.
      compute_dtype: in which they are kept: that of the contractions.
    """
    shape = (num_rows, num_positions, config.num_kv_heads, config.head_dim)
    zeros = jnp.zeros(shape, compute_dtype)
    return [KeyValues(zeros, zeros) for _ in range(config.num_layers)]
