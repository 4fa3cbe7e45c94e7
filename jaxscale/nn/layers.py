"""A Transformer's layers: attention and MLP around a residual stream, stacked and run by one scan."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Key

from jaxscale.nn.attention import Attention
from jaxscale.nn.attention_call import Readable
from jaxscale.nn.cache import KeyValues
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.dropout import dropout
from jaxscale.nn.experts import Experts
from jaxscale.nn.keys import named_key, numbered_keys
from jaxscale.nn.linear import residual_stddev
from jaxscale.nn.mlp import MLP
from jaxscale.nn.norm import make_norm
from jaxscale.nn.router import RouterLosses

# So few layers compile quickly without a loop, and a training step takes a sixth less time on CPU: XLA zeroes what a
# loop keeps for the backward pass.
_MAX_UNROLLED_LAYERS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every layer of a stack reads beside the residual stream.

    Attributes:
      readable: which positions each position may read.
      positions: of the tokens.
      bias: added to the scores of attention; None for none.
      compute_dtype: of the contractions.
      memory: what the encoder made, for layers that read it.
      memory_readable: which positions of it may be read.
    """

    readable: Readable
    positions: Int[Array, "#B S"]
    bias: Float32[Array, "#B H S T"] | None
    compute_dtype: DTypeLike
    memory: Float[Array, "B M D"] | None = None
    memory_readable: Readable = Readable(allowed=None)  # noqa: RUF009 (a frozen class)


class Layer(nnx.Module):
    """Attention and MLP, each added to its input, with the norms before them or after the additions."""

    def __init__(self, config: TransformerConfig, *, reads_memory: bool = False, key: Key[Array, ""]):
        """Makes the parts.

        Args:
          config: the model.
          reads_memory: whether a second attention, over an encoder's output, comes between the two (pre-norm only).
          key: random key.
        """
        stddev = config.stddev_of(config.d_model)
        self.norm_placement = config.norm_placement
        self.parallel = config.parallel
        self.dropout_rate = config.dropout_rate

        def attention(name: str, *, rotary: bool) -> Attention:
            return Attention(
                d_model=config.d_model,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                use_bias=config.use_bias,
                qkv_bias=config.qkv_bias,
                rope_base=config.rope_base if rotary else None,
                rope_scaling=config.rope_scaling,
                scaled_scores=config.scaled_scores,
                dropout_rate=config.dropout_rate,
                stddev=stddev,
                out_stddev=_out_stddev(config, config.num_heads * config.head_dim),
                lora=config.lora,
                key=named_key(key, name),
            )

        self.attention = attention("attention", rotary=config.positions == "rope")
        self.attention_norm = _norm(config)
        self.cross_attention = attention("cross_attention", rotary=False) if reads_memory else None
        self.cross_attention_norm = _norm(config) if reads_memory else None
        self.mlp = _mlp(config, stddev=stddev, out_stddev=_out_stddev(config, config.d_ff), key=named_key(key, "mlp"))
        self.mlp_norm = None if config.parallel else _norm(config)

    def __call__(
        self, x: Float[Array, "B S D"], around: Surroundings, dropout_key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "B S D"], RouterLosses | None]:
        """Returns the layer's output in x's dtype, and its router's losses, if it has one."""
        x, losses, _ = self._run(x, around, None, dropout_key)
        return x, losses

    def extend(
        self, x: Float[Array, "B S D"], around: Surroundings, cache: KeyValues
    ) -> tuple[Float[Array, "B S D"], KeyValues]:
        """As a call without dropout whose attention reads the cache; and the cache, with x in it."""
        x, _, extended = self._run(x, around, cache, None)
        return x, cache if extended is None else extended

    def _run(
        self,
        x: Float[Array, "B S D"],
        around: Surroundings,
        cache: KeyValues | None,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "B S D"], RouterLosses | None, KeyValues | None]:
        names = ("weights", "attention", "mlp")
        weights_key, attention_key, mlp_key = (_named(dropout_key, name) for name in names)
        dtype = around.compute_dtype
        pre = self.norm_placement == "pre"
        normed = self.attention_norm(x).astype(dtype) if pre else x
        read, cache = self._attend(normed, around, cache, weights_key)
        read = x.astype(jnp.float32) + dropout(read, self.dropout_rate, attention_key)
        if self.mlp_norm is None:
            made, losses = self._run_mlp(normed, dtype)
            return (read + dropout(made, self.dropout_rate, mlp_key)).astype(x.dtype), losses, cache
        x = (read if pre else self.attention_norm(read)).astype(x.dtype)
        x = self._read_memory(x, around, dropout_key)
        made, losses = self._run_mlp(self.mlp_norm(x).astype(dtype) if pre else x, dtype)
        made = x.astype(jnp.float32) + dropout(made, self.dropout_rate, mlp_key)
        return (made if pre else self.mlp_norm(made)).astype(x.dtype), losses, cache

    def _attend(
        self,
        x: Float[Array, "B S D"],
        around: Surroundings,
        cache: KeyValues | None,
        dropout_key: Key[Array, ""] | None,
    ) -> tuple[Float32[Array, "B S D"], KeyValues | None]:
        readable, positions, bias, dtype = around.readable, around.positions, around.bias, around.compute_dtype
        if cache is None:
            return self.attention(x, x, readable, positions, bias, dtype, dropout_key), None
        return self.attention.extend(x, cache, readable, positions, bias, dtype)

    def _run_mlp(
        self, x: Float[Array, "B S D"], compute_dtype: DTypeLike
    ) -> tuple[Float32[Array, "B S D"], RouterLosses | None]:
        return self.mlp(x, compute_dtype) if isinstance(self.mlp, Experts) else (self.mlp(x, compute_dtype), None)

    def _read_memory(
        self, x: Float[Array, "B S D"], around: Surroundings, dropout_key: Key[Array, ""] | None
    ) -> Float[Array, "B S D"]:
        if self.cross_attention is None or self.cross_attention_norm is None or around.memory is None:
            return x
        normed = self.cross_attention_norm(x).astype(around.compute_dtype)
        read = self.cross_attention(
            normed,
            around.memory,
            around.memory_readable,
            around.positions,
            None,
            around.compute_dtype,
            _named(dropout_key, "cross_weights"),
        )
        read = dropout(read, self.dropout_rate, _named(dropout_key, "cross_attention"))
        return (x.astype(jnp.float32) + read).astype(x.dtype)


def make_layers(
    config: TransformerConfig, *, scanned: bool, reads_memory: bool = False, key: Key[Array, ""]
) -> Layer | nnx.List:
    """L layers: one whose parameters are stacked, to be scanned, or a list of them.

    Args:
      config: the model.
      scanned: which of the two.
      reads_memory: whether they read an encoder's output.
      key: random key.
    """
    keys = numbered_keys(key, config.num_layers)

    def one(layer_key: Key[Array, ""]) -> Layer:
        return Layer(config, reads_memory=reads_memory, key=layer_key)

    return nnx.vmap(one)(keys) if scanned else nnx.List([one(keys[index]) for index in range(config.num_layers)])


def run_layers(
    layers: Layer | nnx.List,
    num_layers: int,
    x: Float[Array, "B S D"],
    around: Surroundings,
    *,
    dropout_key: Key[Array, ""] | None,
    remat: Remat,
) -> tuple[Float[Array, "B S D"], RouterLosses | None]:
    """Runs layers that `make_layers` made, one after the other.

    Args:
      layers: the layers.
      num_layers: L.
      x: the residual stream.
      around: what they read beside it.
      dropout_key: None for no dropout.
      remat: what of each layer the backward pass computes again; scanned layers only.

    Returns:
      The stream after the last layer, and the mean over layers of their routers' losses, if they have routers.
    """
    keys = None if dropout_key is None else numbered_keys(named_key(dropout_key, "layers"), num_layers)
    if isinstance(layers, nnx.List):
        losses = []
        for index, layer in enumerate(layers):
            x, of_layer = layer(x, around, None if keys is None else keys[index])
            losses.append(of_layer)
        return x, jax.tree.map(lambda *values: sum(values) / num_layers, *losses)
    graphdef, stacked = nnx.split(layers)

    def body(
        x: Float[Array, "B S D"], layer: tuple[nnx.State, Key[Array, ""] | None]
    ) -> tuple[Float[Array, "B S D"], RouterLosses | None]:
        state, key = layer
        return nnx.merge(graphdef, state)(x, around, key)

    # Outside a loop XLA merges on CPU what is computed again with what was computed before: nothing would be saved. TPU
    # and GPU would do without the loop; there is one form for all.
    unroll = remat is False and num_layers <= _MAX_UNROLLED_LAYERS
    x, of_layers = jax.lax.scan(_with_remat(body, remat), x, (stacked, keys), unroll=unroll)
    return x, jax.tree.map(lambda losses: losses.mean(axis=0), of_layers)


def extend_layers(
    layers: nnx.List, x: Float[Array, "B S D"], around: Surroundings, caches: list[KeyValues]
) -> tuple[Float[Array, "B S D"], list[KeyValues]]:
    """Runs layers that stand by themselves on tokens that read, through a cache of each layer, what came before them.

    Args:
      layers: as `make_layers` made them, not scanned: the loop over tokens then changes each cache in place.
      x: the residual stream of the new tokens.
      around: what they read beside it and the caches.
      caches: of the layers.

    Returns:
      The stream after the last layer, and the caches with the new tokens.
    """
    extended = []
    for layer, cache in zip(layers, caches, strict=True):
        x, cache = layer.extend(x, around, cache)
        extended.append(cache)
    return x, extended


def _with_remat(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    if remat is False:
        return body
    # The scores of attention have the examples and heads as batch dims: no weights are in them, and they are large.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "matmuls" else None
    return jax.checkpoint(body, policy=policy)


def _mlp(config: TransformerConfig, *, stddev: float, out_stddev: float, key: Key[Array, ""]) -> MLP | Experts:
    if config.experts is not None:
        return Experts(
            config.experts,
            d_model=config.d_model,
            d_ff=config.d_ff,
            activation=config.activation,
            gated=config.gated,
            stddev=stddev,
            out_stddev=out_stddev,
            key=key,
        )
    return MLP(
        d_model=config.d_model,
        d_ff=config.d_ff,
        activation=config.activation,
        gated=config.gated,
        use_bias=config.use_bias,
        stddev=stddev,
        out_stddev=out_stddev,
        lora=config.lora,
        key=key,
    )


def _out_stddev(config: TransformerConfig, num_contracted: int) -> float:
    """Of weights that write into the residual stream."""
    stddev = config.stddev_of(num_contracted)
    is_smaller = config.norm_placement == "pre" and not config.initial_fan_in
    return residual_stddev(stddev, config.num_layers) if is_smaller else stddev


def _norm(config: TransformerConfig) -> nnx.Module:
    return make_norm(config.norm, config.d_model, epsilon=config.norm_epsilon, use_bias=config.use_bias)


def _named(key: Key[Array, ""] | None, name: str) -> Key[Array, ""] | None:
    return None if key is None else named_key(key, name)
