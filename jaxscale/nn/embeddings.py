"""Tables looked up by token, position and token type, and their sum."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Key

from jaxscale.nn.keys import named_key


class Table(nnx.Module):
    """Rows [V D] looked up by an id."""

    def __init__(self, num_rows: int, d_model: int, *, stddev: float, key: Key[Array, ""]):
        draw = jax.random.truncated_normal(named_key(key, "table"), -2, 2, (num_rows, d_model), jnp.float32)
        self.table = nnx.Param(stddev * draw)

    def __call__(self, ids: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns the rows of `ids`, which must lie in [0, V); XLA clamps those that do not."""
        return jnp.take(self.table[...], ids, axis=0, mode="clip")


class Embeddings(nnx.Module):
    """The sum of a token's row, its position's (if learned) and its type's (if there are types)."""

    def __init__(
        self,
        *,
        vocab_size: int,
        num_positions: int,
        num_token_types: int,
        d_model: int,
        token_stddev: float,
        stddev: float,
        key: Key[Array, ""],
    ):
        """Makes the tables.

        Args:
          vocab_size: V.
          num_positions: of the position table; 0 for none.
          num_token_types: of the type table; 0 for none.
          d_model: D.
          token_stddev: of the tokens' initial rows.
          stddev: of the other initial rows.
          key: random key.
        """

        def table(name: str, num_rows: int) -> Table | None:
            return Table(num_rows, d_model, stddev=stddev, key=named_key(key, name)) if num_rows else None

        self.token = Table(vocab_size, d_model, stddev=token_stddev, key=named_key(key, "token"))
        self.position = table("position", num_positions)
        self.token_type = table("token_type", num_token_types)

    def __call__(
        self, tokens: Int[Array, "B S"], positions: Int[Array, "#B S"], token_types: Int[Array, "B S"]
    ) -> Float32[Array, "B S D"]:
        """Returns the sum of the rows in float32."""
        x = self.token(tokens).astype(jnp.float32)
        if self.position is not None:
            x = x + self.position(jnp.broadcast_to(positions, tokens.shape)).astype(jnp.float32)
        if self.token_type is not None:
            x = x + self.token_type(token_types).astype(jnp.float32)
        return x
