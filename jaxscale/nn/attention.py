"""Multi-head attention with grouped key-value heads (MHA when K = H, GQA between, MQA when K = 1)."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Key

from jaxscale.nn.attention_call import Readable, call_attention
from jaxscale.nn.attention_plain import attend
from jaxscale.nn.cache import KeyValues
from jaxscale.nn.config import LoRAConfig, MapRole, RopeScaling
from jaxscale.nn.keys import named_key
from jaxscale.nn.linear import Linear
from jaxscale.nn.positions import rotate


class Attention(nnx.Module):
    """Projections to H query and K key-value heads, rotary positions if asked, `attend`, and the projection back."""

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        use_bias: bool,
        qkv_bias: bool,
        rope_base: float | None,
        rope_scaling: RopeScaling | None,
        scaled_scores: bool,
        dropout_rate: float,
        stddev: float,
        out_stddev: float,
        lora: LoRAConfig | None,
        key: Key[Array, ""],
    ):
        """Makes the projections.

        Args:
          d_model: D.
          num_heads: H, a multiple of K.
          num_kv_heads: K.
          head_dim: C.
          use_bias: whether the four projections have a bias.
          qkv_bias: whether query, key and value have one, whatever the other does.
          rope_base: of rotary positions; None for none.
          rope_scaling: of rotary positions, to a longer context; None for none.
          scaled_scores: whether scores are divided by sqrt(C).
          dropout_rate: of the attention weights.
          stddev: of the initial query, key and value kernels.
          out_stddev: of the initial output kernel.
          lora: of factors beside the projections; None for none.
          key: random key.
        """

        def projection(name: MapRole, in_dims: tuple[int, ...], out_dims: tuple[int, ...], spread: float) -> Linear:
            has_bias = use_bias or (qkv_bias and name != "out")
            factors = None if lora is None else lora.of(name)
            return Linear(in_dims, out_dims, use_bias=has_bias, stddev=spread, key=named_key(key, name), lora=factors)

        self.rope_base = rope_base
        self.rope_scaling = rope_scaling
        self.scaled_scores = scaled_scores
        self.dropout_rate = dropout_rate
        self.query = projection("query", (d_model,), (num_heads, head_dim), stddev)
        self.key = projection("key", (d_model,), (num_kv_heads, head_dim), stddev)
        self.value = projection("value", (d_model,), (num_kv_heads, head_dim), stddev)
        self.out = projection("out", (num_heads, head_dim), (d_model,), out_stddev)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        source: Float[Array, "B T D"],
        readable: Readable,
        positions: Int[Array, "#B S"],
        bias: Float32[Array, "#B H S T"] | None,
        compute_dtype: DTypeLike,
        dropout_key: Key[Array, ""] | None,
    ) -> Float32[Array, "B S D"]:
        """Returns what every position of `x` read in `source` (`x` itself, or another sequence), in float32.

        Rotary positions are of `x` and `source` alike: with them, `source` is `x`.
        """
        query, key, value = self._heads(x, source, positions, compute_dtype)
        mixed = call_attention(
            query,
            key,
            value,
            readable,
            compute_dtype=compute_dtype,
            bias=bias,
            scaled=self.scaled_scores,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.out(mixed.astype(compute_dtype), compute_dtype)

    def extend(
        self,
        x: Float[Array, "B S D"],
        cache: KeyValues,
        readable: Readable,
        positions: Int[Array, "B S"],
        bias: Float32[Array, "#B H S T"] | None,
        compute_dtype: DTypeLike,
    ) -> tuple[Float32[Array, "B S D"], KeyValues]:
        """As a call in which `x` reads itself and, through the cache, what was read before it; and the cache with x."""
        query, key, value = self._heads(x, x, positions, compute_dtype)
        cache = cache.written(key, value, positions)
        mixed = attend(
            query,
            cache.keys,
            cache.values,
            readable.allowed,
            compute_dtype=compute_dtype,
            bias=bias,
            scaled=self.scaled_scores,
        )
        return self.out(mixed.astype(compute_dtype), compute_dtype), cache

    def _heads(
        self,
        x: Float[Array, "B S D"],
        source: Float[Array, "B T D"],
        positions: Int[Array, "#B S"],
        compute_dtype: DTypeLike,
    ) -> tuple[Float[Array, "B S H C"], Float[Array, "B T K C"], Float[Array, "B T K C"]]:
        """Queries of x, keys and values of the source, in the compute dtype."""
        query, key = self.query(x, compute_dtype), self.key(source, compute_dtype)
        if self.rope_base is not None:
            query, key = (rotate(heads, positions, self.rope_base, self.rope_scaling) for heads in (query, key))
        query, key = query.astype(compute_dtype), key.astype(compute_dtype)
        return query, key, self.value(source, compute_dtype).astype(compute_dtype)
