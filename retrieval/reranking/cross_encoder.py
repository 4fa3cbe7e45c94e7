"""A cross-encoder: a transformer that reads query and document as one text, and a map of what it pools to one score.

The map has no bias: every loss here, and every order of documents, is of differences of one query's scores.

Reference: Nogueira & Cho 2019, Passage Re-ranking with BERT, https://arxiv.org/abs/1901.04085
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float32, Int

from jaxscale.data.text_pairs import PairFrame, TokenIds
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key
from retrieval.towers.encoder import Pooling, pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig:
    """What a cross-encoder computes, its weights aside.

    Attributes:
      transformer: the network that gives each token its hidden state.
      pooling: which hidden states are scored: the first (`cls`), the `mean` of all, or the `last`.
      max_length: tokens of query and document together, special tokens included; the document is cut, never the query.
    """

    transformer: TransformerConfig
    pooling: Pooling
    max_length: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_length <= self.transformer.max_positions:
            raise UsageError(
                f"max_length={self.max_length} must be between 1 and the transformer's "
                f"max_positions={self.transformer.max_positions}"
            )

    @property
    def has_types(self) -> bool:
        """Whether the network tells the tokens of a query from those of a document by a table of types."""
        return self.transformer.type_vocab_size > 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEncoder:
    """A cross-encoder with its weights and its tokenizer: all that is needed to score texts.

    Attributes:
      config: what it computes.
      params: `{"transformer": ..., "head": {"kernel": [D]}}`.
      tokenizer: turns texts into ids, and says what stands between two of them.
    """

    config: CrossEncoderConfig
    params: Params
    tokenizer: Tokenizer

    @functools.cached_property
    def frame(self) -> PairFrame:
        """What stands around a query and a document."""
        return self.tokenizer.pair_frame()


def init_cross_encoder(config: CrossEncoderConfig, key: Array) -> Params:
    """Fresh weights, float32, the tree described at `CrossEncoder.params`; pure and traceable."""
    transformer = functional.init_params(config.transformer, named_key(key, "transformer"))
    return {"transformer": transformer, "head": init_head(config.transformer.d_model, named_key(key, "head"))}


def init_head(d_model: int, key: Array) -> Params:
    """The map to one score: `{"kernel": [D]}` with entries of variance 1/D."""
    kernel = jax.random.normal(key, (d_model,), jnp.float32) / jnp.sqrt(jnp.float32(d_model))
    return {"kernel": kernel}


def apply_cross_encoder(
    config: CrossEncoderConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    types: Int[Array, "B S"] | None,
    *,
    compute_dtype: DTypeLike,
    dropout_key: Array | None = None,
    remat: Remat = False,
) -> Float32[Array, "B"]:
    """The scores of a batch of joint texts; pure.

    Args:
      config: what it computes.
      params: its weights.
      tokens: ids, padded to S.
      mask: True at a text's own tokens, which come before the padding.
      types: of each token, in [0, T); None where the network has no table of them.
      compute_dtype: of the transformer's products; they are accumulated in float32, and the head's are float32.
      dropout_key: a PRNG key while training; None switches dropout off.
      remat: what of each layer the backward pass computes again.
    """
    hidden = functional.apply(
        config.transformer,
        params["transformer"],
        tokens,
        mask,
        compute_dtype=compute_dtype,
        dropout_key=dropout_key,
        token_types=types,
        remat=remat,
    )
    kernel = params["head"]["kernel"].astype(jnp.float32)
    # HIGHEST: on accelerators a float32 product would otherwise be rounded to bfloat16 or TF32.
    return jnp.einsum("bd,d->b", pool(hidden, mask, config.pooling), kernel, precision=jax.lax.Precision.HIGHEST)


def check_room(frame: PairFrame, queries: Sequence[TokenIds], names: Sequence[str], max_length: int) -> None:
    """Refuses queries that leave their documents no room.

    Args:
      frame: what stands around a query and a document.
      queries: their ids, without special tokens.
      names: of the queries, for the message.
      max_length: tokens of query and document together.

    Raises:
      DataError: naming the longest query.
    """
    if not queries:
        return
    longest = int(np.argmax([len(ids) for ids in queries]))
    if len(queries[longest]) + frame.num_special >= max_length:
        raise DataError(
            f"the query {names[longest]!r} has {len(queries[longest])} tokens, which with {frame.num_special} special "
            f"ones leave no room for a document among max_length={max_length}; shorten it"
        )
