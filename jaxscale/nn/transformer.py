"""One Transformer: an encoder in BERT's layout or a decoder in Llama's, by its configuration."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxscale.errors import UsageError
from jaxscale.nn.attention import Attention
from jaxscale.nn.dropout import dropout
from jaxscale.nn.embeddings import Embeddings
from jaxscale.nn.keys import named_key, numbered_keys
from jaxscale.nn.linear import Linear, contract, residual_stddev
from jaxscale.nn.mlp import MLP
from jaxscale.nn.norm import make_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that fixes a Transformer's parameters and its function of them.

    `bert_config` and `decoder_config` fill in the two usual layouts.

    Attributes:
      kind: an encoder reads both ways; a decoder reads to the left and has an output over the vocabulary.
      num_layers: L.
      d_model: D.
      num_heads: H, query heads.
      num_kv_heads: K, key-value heads; divides H.
      head_dim: C.
      d_ff: F.
      vocab_size: V.
      max_positions: the longest sequence in tokens.
      type_vocab_size: rows of the token type table; 0 for none.
      positions: a table of learned rows, or rotary.
      rope_base: of rotary positions; not used by learned ones.
      norm: which norm.
      norm_epsilon: added under its root.
      norm_placement: "post" as BERT (after each addition, and after the embeddings), "pre" as Llama (before each part,
        and once at the end).
      activation: of the MLP; "gelu" is the exact one.
      gated: whether the MLP has a gate ("silu" and a gate is SwiGLU).
      use_bias: whether linear maps have biases.
      tied_output: whether a decoder's output is the token table; an encoder has no output.
      dropout_rate: of embeddings, attention weights and each part's output; used only where a key is passed.
      initial_stddev: of the weights drawn at first.
    """

    kind: Literal["encoder", "decoder"]
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    positions: Literal["learned", "rope"]
    rope_base: float
    norm: Literal["layernorm", "rmsnorm"]
    norm_epsilon: float
    norm_placement: Literal["pre", "post"]
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"]
    gated: bool
    use_bias: bool
    tied_output: bool
    dropout_rate: float
    initial_stddev: float

    def __post_init__(self) -> None:
        for name in ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UsageError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise UsageError(f"head_dim={self.head_dim} must be even for positions='rope', which turns pairs")
        if self.max_positions < 1:
            raise UsageError(f"max_positions={self.max_positions} must be at least 1")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UsageError(f"dropout_rate={self.dropout_rate} must be in [0, 1)")

    @property
    def num_params(self) -> int:
        """How many numbers the model learns.

        >>> bert_config(num_layers=2, d_model=128, num_heads=2, d_ff=512, vocab_size=30522).num_params
        4369408
        """
        shapes = jax.eval_shape(lambda: nnx.state(Transformer(self, key=jax.random.key(0))))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def bert_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    vocab_size: int,
    max_positions: int = 512,
    type_vocab_size: int = 2,
    dropout_rate: float = 0.1,
) -> TransformerConfig:
    """An encoder in BERT's layout: post-norm, learned positions, token types, exact GELU, biases.

    Reference: Devlin et al. 2018, https://arxiv.org/abs/1810.04805
    """
    if d_model % num_heads:
        raise UsageError(f"d_model={d_model} must be a multiple of num_heads={num_heads}")
    return TransformerConfig(
        kind="encoder",
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_positions=max_positions,
        type_vocab_size=type_vocab_size,
        positions="learned",
        rope_base=10000.0,
        norm="layernorm",
        norm_epsilon=1e-12,
        norm_placement="post",
        activation="gelu",
        gated=False,
        use_bias=True,
        tied_output=False,
        dropout_rate=dropout_rate,
        initial_stddev=0.02,
    )


def decoder_config(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
    vocab_size: int,
    max_positions: int,
    head_dim: int | None = None,
    rope_base: float = 10000.0,
    tied_output: bool = True,
    dropout_rate: float = 0.0,
) -> TransformerConfig:
    """A decoder in Llama's layout: pre-norm, RMSNorm, rotary positions, grouped key-value heads, SwiGLU, no biases.

    Reference: Touvron et al. 2023, https://arxiv.org/abs/2302.13971
    """
    if head_dim is None and d_model % num_heads:
        raise UsageError(f"d_model={d_model} must be a multiple of num_heads={num_heads}, or give head_dim")
    return TransformerConfig(
        kind="decoder",
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=d_model // num_heads if head_dim is None else head_dim,
        d_ff=d_ff,
        vocab_size=vocab_size,
        max_positions=max_positions,
        type_vocab_size=0,
        positions="rope",
        rope_base=rope_base,
        norm="rmsnorm",
        norm_epsilon=1e-5,
        norm_placement="pre",
        activation="silu",
        gated=True,
        use_bias=False,
        tied_output=tied_output,
        dropout_rate=dropout_rate,
        initial_stddev=0.02,
    )


class Layer(nnx.Module):
    """Attention and MLP, each added to its input, with the norms before them or after the additions."""

    def __init__(self, config: TransformerConfig, *, key: Key[Array, ""]):
        stddev = config.initial_stddev
        out_stddev = residual_stddev(stddev, config.num_layers) if config.norm_placement == "pre" else stddev
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate
        self.attention = Attention(
            d_model=config.d_model,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            use_bias=config.use_bias,
            rope_base=config.rope_base if config.positions == "rope" else None,
            dropout_rate=config.dropout_rate,
            stddev=stddev,
            out_stddev=out_stddev,
            key=named_key(key, "attention"),
        )
        self.attention_norm = make_norm(config.norm, config.d_model, epsilon=config.norm_epsilon)
        self.mlp = MLP(
            d_model=config.d_model,
            d_ff=config.d_ff,
            activation=config.activation,
            gated=config.gated,
            use_bias=config.use_bias,
            stddev=stddev,
            out_stddev=out_stddev,
            key=named_key(key, "mlp"),
        )
        self.mlp_norm = make_norm(config.norm, config.d_model, epsilon=config.norm_epsilon)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        allowed: Bool[Array, "#B #S S"] | None,
        positions: Int[Array, "#B S"],
        compute_dtype: DTypeLike,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "B S D"]:
        """Returns the layer's output in x's dtype."""
        weights_key, attention_key, mlp_key = (
            None if dropout_key is None else named_key(dropout_key, name) for name in ("weights", "attention", "mlp")
        )
        pre = self.norm_placement == "pre"
        read = self.attention_norm(x).astype(compute_dtype) if pre else x
        read = self.attention(read, allowed, positions, compute_dtype, weights_key)
        read = x.astype(jnp.float32) + dropout(read, self.dropout_rate, attention_key)
        x = (read if pre else self.attention_norm(read)).astype(x.dtype)
        made = self.mlp(self.mlp_norm(x).astype(compute_dtype) if pre else x, compute_dtype)
        made = x.astype(jnp.float32) + dropout(made, self.dropout_rate, mlp_key)
        return (made if pre else self.mlp_norm(made)).astype(x.dtype)


# So few layers compile quickly without a loop, and a training step takes a sixth less time on CPU: XLA zeroes what a
# loop keeps for the backward pass.
_MAX_UNROLLED_LAYERS = 8


class Transformer(nnx.Module):
    """Embeddings, L layers, and the norm that the layout asks for.

    Scanned, the layers' parameters are stacked and one scan runs them: the program does not grow with depth, and a plan
    shards one array for all layers. Not scanned, each layer stands by itself: faster where nothing is differentiated,
    since no slice of a stack is copied.
    """

    def __init__(self, config: TransformerConfig, *, key: Key[Array, ""], scanned: bool = True):
        self.config = config
        self.scanned = scanned
        self.embeddings = Embeddings(
            vocab_size=config.vocab_size,
            num_positions=config.max_positions if config.positions == "learned" else 0,
            num_token_types=config.type_vocab_size,
            d_model=config.d_model,
            stddev=config.initial_stddev,
            key=named_key(key, "embeddings"),
        )
        # After the embeddings when post-norm, after the last layer when pre-norm.
        self.norm = make_norm(config.norm, config.d_model, epsilon=config.norm_epsilon)
        layer_keys = numbered_keys(named_key(key, "layers"), config.num_layers)
        self.layers = (
            nnx.vmap(lambda layer_key: Layer(config, key=layer_key))(layer_keys)
            if scanned
            else nnx.List([Layer(config, key=layer_keys[index]) for index in range(config.num_layers)])
        )
        self.output = (
            Linear(
                (config.d_model,),
                (config.vocab_size,),
                use_bias=False,
                stddev=config.initial_stddev,
                key=named_key(key, "output"),
            )
            if config.kind == "decoder" and not config.tied_output
            else None
        )

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"] | None,
        *,
        compute_dtype: DTypeLike = jnp.float32,
        dropout_key: Key[Array, ""] | None = None,
        token_types: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        remat: bool = False,
    ) -> Float32[Array, "B S D"]:
        """Returns the hidden state of every position; see `jaxscale.nn.functional.apply`."""
        config = self.config
        if tokens.shape[1] > config.max_positions:
            raise UsageError(
                f"sequence of {tokens.shape[1]} tokens is longer than max_positions={config.max_positions}"
            )
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        token_types = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.embeddings(tokens, positions, token_types)
        x = self.norm(x) if config.norm_placement == "post" else x
        embedding_key = None if dropout_key is None else named_key(dropout_key, "embeddings")
        x = dropout(x, config.dropout_rate, embedding_key).astype(compute_dtype)
        allowed = None if mask is None else mask[:, None, :]
        if config.kind == "decoder":
            earlier = positions[:, None, :] <= positions[:, :, None]
            allowed = earlier if allowed is None else allowed & earlier
        x = self._run_layers(x, allowed, positions, compute_dtype, dropout_key, remat)
        return self.norm(x) if config.norm_placement == "pre" else x.astype(jnp.float32)

    def logits(
        self, hidden: Float[Array, "B S D"], *, compute_dtype: DTypeLike = jnp.float32
    ) -> Float32[Array, "B S V"]:
        """Returns a decoder's scores of every next token, in float32."""
        if self.config.kind != "decoder":
            raise UsageError(f"kind={self.config.kind!r} has no output over the vocabulary; a decoder has")
        if self.output is not None:
            return self.output(hidden.astype(compute_dtype), compute_dtype)
        table = self.embeddings.token.table[...]
        return contract(hidden.astype(compute_dtype), table, contracted=((2,), (1,)), compute_dtype=compute_dtype)

    def _run_layers(
        self,
        x: Float[Array, "B S D"],
        allowed: Bool[Array, "#B #S S"] | None,
        positions: Int[Array, "#B S"],
        compute_dtype: DTypeLike,
        dropout_key: Key[Array, ""] | None,
        remat: bool,
    ) -> Float[Array, "B S D"]:
        keys = None if dropout_key is None else numbered_keys(named_key(dropout_key, "layers"), self.config.num_layers)
        if not self.scanned:
            for index, layer in enumerate(self.layers):
                x = layer(x, allowed, positions, compute_dtype, None if keys is None else keys[index])
            return x
        graphdef, stacked = nnx.split(self.layers)

        def body(
            x: Float[Array, "B S D"], layer: tuple[nnx.State, Key[Array, ""] | None]
        ) -> tuple[Float[Array, "B S D"], None]:
            state, key = layer
            return nnx.merge(graphdef, state)(x, allowed, positions, compute_dtype, key), None

        unroll = self.config.num_layers <= _MAX_UNROLLED_LAYERS
        return jax.lax.scan(jax.checkpoint(body) if remat else body, x, (stacked, keys), unroll=unroll)[0]
