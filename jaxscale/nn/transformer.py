"""One Transformer: an encoder in BERT's layout, a decoder in Llama's, and what lies between, by its configuration."""

import functools
import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxscale.errors import UsageError
from jaxscale.nn.attention_call import Readable
from jaxscale.nn.cache import KeyValues
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.dropout import dropout
from jaxscale.nn.embeddings import Embeddings
from jaxscale.nn.keys import named_key
from jaxscale.nn.layers import Surroundings, extend_layers, make_layers, run_layers
from jaxscale.nn.linear import Linear, contract
from jaxscale.nn.norm import make_norm
from jaxscale.nn.relative_positions import RelativePositions
from jaxscale.nn.router import RouterLosses


class Transformer(nnx.Module):
    """Embeddings, L layers, and the norm that the layout asks for.

    Scanned, the layers' parameters are stacked and one scan runs them: the program does not grow with depth, and a plan
    shards one array for all layers. Not scanned, each layer stands by itself: faster where nothing is differentiated,
    since no slice of a stack is copied.
    """

    def __init__(self, config: TransformerConfig, *, key: Key[Array, ""], scanned: bool = True):
        self.config = config
        self.embeddings = Embeddings(
            vocab_size=config.vocab_size,
            num_positions=config.max_positions if config.positions == "learned" else 0,
            num_token_types=config.type_vocab_size,
            d_model=config.d_model,
            token_stddev=config.token_stddev,
            stddev=config.initial_stddev,
            key=named_key(key, "embeddings"),
        )
        self.relative_positions = relative_positions(config, key=key)
        # After the embeddings when post-norm, after the last layer when pre-norm.
        self.norm = make_norm(config.norm, config.d_model, epsilon=config.norm_epsilon, use_bias=config.use_bias)
        self.layers = make_layers(config, scanned=scanned, key=named_key(key, "layers"))
        self.output = make_output(config, key=key)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"] | None,
        *,
        compute_dtype: DTypeLike = jnp.float32,
        dropout_key: Key[Array, ""] | None = None,
        token_types: Int[Array, "B S"] | None = None,
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        remat: Remat = False,
    ) -> tuple[Float32[Array, "B S D"], RouterLosses | None]:
        """Returns the hidden state of every position and the routers' losses; see `jaxscale.nn.functional.apply`."""
        config = self.config
        check_length(config, tokens, "sequence")
        order = default_positions(tokens)
        positions = order if positions is None else positions
        token_types = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.embeddings(tokens, positions, token_types)
        x = self.norm(x) if config.norm_placement == "post" else x
        embedding_key = None if dropout_key is None else named_key(dropout_key, "embeddings")
        x = dropout(x, config.dropout_rate, embedding_key).astype(compute_dtype)
        around = Surroundings(
            readable=readable_positions(config, order, mask, segments),
            positions=positions,
            bias=None if self.relative_positions is None else self.relative_positions(positions),
            compute_dtype=compute_dtype,
        )
        x, losses = run_layers(self.layers, config.num_layers, x, around, dropout_key=dropout_key, remat=remat)
        return (self.norm(x) if config.norm_placement == "pre" else x.astype(jnp.float32)), losses

    def extend(
        self,
        tokens: Int[Array, "B S"],
        caches: list[KeyValues],
        first: Int[Array, " B"],
        *,
        compute_dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float32[Array, "B S D"], list[KeyValues]]:
        """Returns hidden states of tokens that follow others, and the caches; see `jaxscale.nn.functional.extend`."""
        config = self.config
        positions = first[:, None] + default_positions(tokens)
        x = self.embeddings(tokens, positions, jnp.zeros_like(tokens))
        x = (self.norm(x) if config.norm_placement == "post" else x).astype(compute_dtype)
        around = cached_surroundings(positions, caches, self.relative_positions, compute_dtype)
        x, caches = extend_layers(self.layers, x, around, caches)
        return (self.norm(x) if config.norm_placement == "pre" else x.astype(jnp.float32)), caches

    def logits(
        self, hidden: Float[Array, "B S D"], *, compute_dtype: DTypeLike = jnp.float32
    ) -> Float32[Array, "B S V"]:
        """Returns a decoder's scores of every next token, in float32."""
        check_has_output(self.config)
        return scores_of_tokens(self.config, self.output, self.embeddings.token.table[...], hidden, compute_dtype)


def cached_surroundings(
    positions: Int[Array, "B S"],
    caches: list[KeyValues],
    relative: RelativePositions | None,
    compute_dtype: DTypeLike,
) -> Surroundings:
    """What layers read beside the stream where keys and values of all tokens lie in caches, by position."""
    places = jnp.arange(caches[0].keys.shape[1], dtype=jnp.int32)[None, :]
    return Surroundings(
        readable=Readable(allowed=places[:, None, :] <= positions[:, :, None]),
        positions=positions,
        bias=None if relative is None else relative(positions, places),
        compute_dtype=compute_dtype,
    )


def relative_positions(config: TransformerConfig, *, key: Key[Array, ""]) -> RelativePositions | None:
    """The table of biases by distance that a stack's layers share, if its positions are such."""
    if config.positions != "relative":
        return None
    return RelativePositions(
        config.num_heads,
        both_ways=config.kind == "encoder",
        stddev=config.initial_stddev,
        key=named_key(key, "relative_positions"),
    )


def make_output(config: TransformerConfig, *, key: Key[Array, ""]) -> Linear | None:
    """A decoder's map to the vocabulary; None where it is the token table, or where there is no output."""
    if config.kind != "decoder" or config.tied_output or config.headless:
        return None
    return Linear(
        (config.d_model,),
        (config.vocab_size,),
        use_bias=False,
        stddev=config.stddev_of(config.d_model),
        key=named_key(key, "output"),
    )


def scores_of_tokens(
    config: TransformerConfig,
    output: Linear | None,
    table: Float[Array, "V D"],
    hidden: Float[Array, "B S D"],
    compute_dtype: DTypeLike,
) -> Float32[Array, "B S V"]:
    """Hidden states through the output or, where there is none, against the token table."""
    hidden = scaled_for_logits(config, hidden)
    if output is not None:
        return output(hidden.astype(compute_dtype), compute_dtype)
    return contract(hidden.astype(compute_dtype), table, contracted=((2,), (1,)), compute_dtype=compute_dtype)


def scaled_for_logits(config: TransformerConfig, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """The hidden states that the output is multiplied with: divided by sqrt(D) where scores are to be."""
    return hidden / jnp.asarray(math.sqrt(config.d_model), hidden.dtype) if config.scaled_logits else hidden


def check_has_output(config: TransformerConfig) -> None:
    """Refuses a model that gives no scores of tokens.

    Raises:
      UsageError: it is an encoder, or headless.
    """
    if config.kind != "decoder":
        raise UsageError(f"kind={config.kind!r} has no output over the vocabulary; a decoder has")
    if config.headless:
        raise UsageError("headless=True: this decoder was made to embed texts and has no output over the vocabulary")


def check_length(config: TransformerConfig, tokens: Int[Array, "B S"], what: str) -> None:
    """Refuses a sequence longer than the model's limit.

    Raises:
      UsageError: it is.
    """
    if tokens.shape[1] > config.max_positions:
        raise UsageError(f"{what} of {tokens.shape[1]} tokens is longer than max_positions={config.max_positions}")


def default_positions(tokens: Int[Array, "B S"]) -> Int[Array, "1 S"]:
    """0 to S - 1, for all examples alike."""
    return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]


def readable_positions(
    config: TransformerConfig,
    order: Int[Array, "1 S"],
    mask: Bool[Array, "B S"] | None,
    segments: Int[Array, "B S"] | None = None,
) -> Readable:
    """Which tokens each token may read: real ones of its own segment, and for a decoder none to its right.

    Args:
      config: the model.
      order: 0 to S - 1: where a token stands in its row, whatever position it has in its document.
      mask: True at real tokens; None: all are.
      segments: tokens of one document have one number, at least 0; None: a row is one document.
    """
    rules = []
    if mask is not None:
        rules.append(mask[:, None, :])
    if segments is not None:
        rules.append(segments[:, None, :] == segments[:, :, None])
    if config.kind == "decoder":
        rules.append(order[:, None, :] <= order[:, :, None])
    query_groups, key_groups = segments, segments
    if mask is not None:
        query_groups = jnp.zeros(mask.shape, jnp.int32) if segments is None else segments
        key_groups = groups_of_real(mask, query_groups)
    return Readable(
        allowed=functools.reduce(jnp.logical_and, rules) if rules else None,
        causal=config.kind == "decoder",
        query_groups=query_groups,
        key_groups=key_groups,
    )


def groups_of_real(mask: Bool[Array, "B T"], groups: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The groups of real tokens; the others are of one that no token reads."""
    return jnp.where(mask, groups, jnp.asarray(-1, groups.dtype))
