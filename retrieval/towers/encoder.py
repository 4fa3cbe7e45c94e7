"""Towers: a transformer, a pooling and an optional projection that turn a text's tokens into one vector."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from jaxscale.data.tokenizer import Encoded, Tokenizer
from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key
from retrieval.contract import Score

Pooling = Literal["mean", "cls", "last"]
Side = Literal["query", "document"]
SIDES: tuple[Side, Side] = ("query", "document")

# Below this squared length a vector counts as zero and stays zero instead of becoming NaN.
SMALLEST_SQUARED_NORM = 1e-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What a tower computes, its weights aside.

    Attributes:
      transformer: the network that gives each token its hidden state.
      pooling: which hidden states become the vector: the `mean` of a text's tokens, the first (`cls`) or the `last`.
      normalize: whether vectors are scaled to length 1.
      projection_dim: dims of a linear map after pooling (no bias); None leaves the pooled vector as it is.
      prefix: text put before every text of this side, such as `query: `.
      max_length: tokens kept of a text, special tokens included; the rest is cut off.
    """

    transformer: TransformerConfig
    pooling: Pooling
    normalize: bool
    projection_dim: int | None
    prefix: str
    max_length: int

    def __post_init__(self) -> None:
        if self.projection_dim is not None and self.projection_dim < 1:
            raise UsageError(f"projection_dim={self.projection_dim} must be at least 1, or None for no projection")
        if not 1 <= self.max_length <= self.transformer.max_positions:
            raise UsageError(
                f"max_length={self.max_length} must be between 1 and the transformer's "
                f"max_positions={self.transformer.max_positions}"
            )

    @property
    def num_dims(self) -> int:
        """Dims of the vectors this encoder gives (E)."""
        return self.transformer.d_model if self.projection_dim is None else self.projection_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A tower with its weights and its tokenizer: all that is needed to turn texts into vectors.

    Attributes:
      config: what it computes.
      params: `{"transformer": ..., "projection": {"kernel": [D E]}}`, the latter only where there is a projection.
      tokenizer: turns prefix + text into ids.
    """

    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer

    def tokenize(self, texts: Sequence[str]) -> Encoded:
        """The ids of `prefix + text` for each text, at most `max_length` of them."""
        return tokenize(self.config, self.tokenizer, texts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerPair:
    """Two encoders that are trained together.

    Attributes:
      query: the encoder of queries.
      document: the encoder of documents.
      shared: whether both use the same weights.
      score: how their vectors are compared.
    """

    query: EncoderConfig
    document: EncoderConfig
    shared: bool
    score: Score

    def __post_init__(self) -> None:
        if self.query.num_dims != self.document.num_dims:
            raise UsageError(
                f"the query tower gives vectors of {self.query.num_dims} dims, the document tower of "
                f"{self.document.num_dims}; give both a projection: `--towers.projection-dim N`"
            )

    def config(self, side: Side) -> EncoderConfig:
        """The encoder of one side."""
        return self.query if side == "query" else self.document

    def params(self, tree: dict[str, Params], side: Side) -> Params:
        """The weights of one side's encoder in a tree that `init_towers` made."""
        return tree["shared" if self.shared else side]


def tokenize(config: EncoderConfig, tokenizer: Tokenizer, texts: Sequence[str]) -> Encoded:
    """The ids of `prefix + text` for each text, at most `max_length` of them."""
    return tokenizer.encode_batch([config.prefix + text for text in texts], config.max_length)


def init_encoder(config: EncoderConfig, key: Array) -> Params:
    """Fresh weights for a tower, as a plain tree; pure and traceable.

    Args:
      config: what the tower computes.
      key: a PRNG key.

    Returns:
      The tree described at `Encoder.params`, float32.
    """
    params: Params = {"transformer": functional.init_params(config.transformer, named_key(key, "transformer"))}
    if config.projection_dim is not None:
        projection_key = named_key(key, "projection")
        params["projection"] = init_projection(config.transformer.d_model, config.projection_dim, projection_key)
    return params


def init_projection(d_model: int, projection_dim: int, key: Array) -> Params:
    """A projection's kernel [D E] with entries of variance 1/D, so that it keeps a vector's length on average."""
    kernel = jax.random.normal(key, (d_model, projection_dim), jnp.float32) / jnp.sqrt(jnp.float32(d_model))
    return {"kernel": kernel}


def init_towers(towers: TowerPair, key: Array) -> dict[str, Params]:
    """Fresh weights: `{"shared": ...}`, or `{"query": ..., "document": ...}`."""
    if towers.shared:
        return {"shared": init_encoder(towers.query, named_key(key, "shared"))}
    return {
        "query": init_encoder(towers.query, named_key(key, "query")),
        "document": init_encoder(towers.document, named_key(key, "document")),
    }


def apply_encoder(
    config: EncoderConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    *,
    compute_dtype: DTypeLike,
    dropout_key: Array | None = None,
    remat: Remat = False,
) -> Float32[Array, "B E"]:
    """The vectors of a batch of tokenised texts; pure.

    Args:
      config: what the tower computes.
      params: its weights, the tree described at `Encoder.params`.
      tokens: ids, padded to S.
      mask: True at a text's own tokens, False at padding, which lies after them.
      compute_dtype: dtype of the transformer's products; they are accumulated in float32.
      dropout_key: a PRNG key while training; None switches dropout off.
      remat: what of each layer the backward pass computes again.

    Returns:
      One float32 vector per text; of length 1 where `config.normalize`.
    """
    hidden = functional.apply(
        config.transformer,
        params["transformer"],
        tokens,
        mask,
        compute_dtype=compute_dtype,
        dropout_key=dropout_key,
        remat=remat,
    )
    vectors = pool(hidden, mask, config.pooling)
    if config.projection_dim is not None:
        kernel = params["projection"]["kernel"].astype(jnp.float32)
        # HIGHEST: on accelerators a float32 product would otherwise be rounded to bfloat16 or TF32.
        vectors = jnp.einsum("bd,de->be", vectors, kernel, precision=jax.lax.Precision.HIGHEST)
    return normalize(vectors) if config.normalize else vectors


def pool(hidden: Float[Array, "B S D"], mask: Bool[Array, "B S"], pooling: Pooling) -> Float32[Array, "B D"]:
    """One float32 vector per text out of its tokens' hidden states; a text without tokens gives zeros.

    Args:
      hidden: hidden states, any float dtype; summed in float32.
      mask: True at a text's own tokens, which come before the padding.
      pooling: which of them count.

    >>> hidden = jnp.array([[[1.0], [3.0], [9.0]]])
    >>> mask = jnp.array([[True, True, False]])
    >>> [pool(hidden, mask, kind).item() for kind in ("mean", "cls", "last")]
    [2.0, 1.0, 3.0]
    """
    kept = jnp.where(mask[:, :, None], hidden.astype(jnp.float32), 0.0)
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
    if pooling == "mean":
        return jnp.sum(kept, axis=1) / jnp.maximum(lengths, 1).astype(jnp.float32)[:, None]
    if pooling == "cls":
        return kept[:, 0]
    last = jnp.maximum(lengths - 1, 0)
    return jnp.take_along_axis(kept, last[:, None, None], axis=1)[:, 0]


def normalize(vectors: Float32[Array, "N E"]) -> Float32[Array, "N E"]:
    """Scales each vector to length 1; a zero vector stays zero.

    >>> normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, jnp.float32(SMALLEST_SQUARED_NORM)))
