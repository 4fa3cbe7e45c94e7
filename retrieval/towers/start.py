"""Where a job's towers start: from a model's weights and tokenizer, or from nothing."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.headless import headless, headless_params
from jaxscale.nn.keys import named_key
from jaxscale.nn.text import closed_by_end
from retrieval.contract import Score
from retrieval.towers.encoder import SIDES, EncoderConfig, Pooling, Side, TowerPair, init_projection
from retrieval.towers.loading import load_towers
from retrieval.towers.retriever_folder import LoadedTowers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Towers:
    """The two towers.

    Attributes:
      init_from: a model to start from: a retriever, model or run folder, or a Hugging Face folder, of an encoder or a
        decoder; its transformer, tokenizer and weights are taken. Empty: random weights, and a tokenizer trained on
        the corpus.
      transformer: the network where `init_from` is empty; its `vocab_size` is also the size asked of the tokenizer.
      shared: one set of weights for both sides, or one for each.
      pooling: how a text's hidden states become one vector.
      score: `cosine` compares vectors of length 1, `dot` compares them as they are.
      projection_dim: dims of a linear map after pooling; None for none.
      dropout_rate: while training; None leaves the transformer's own.
      query_prefix: text put before every query.
      document_prefix: text put before every document.
      append_end: whether the token that ends texts is put behind every text, also behind one that is cut; what the
        last token's pooling of a decoder reads. Not needed where the tokenizer does so already.
      both_ways: whether a decoder's tokens read those to their right too.
      remat: what of each layer the backward pass computes again; large towers need it.
    """

    init_from: str = ""
    transformer: TransformerConfig | None = None
    shared: bool = True
    pooling: Pooling = "mean"
    score: Score = "cosine"
    projection_dim: int | None = None
    dropout_rate: float | None = None
    query_prefix: str = ""
    document_prefix: str = ""
    append_end: bool = typed_json.added(False)
    both_ways: bool = typed_json.added(False)
    remat: Remat = typed_json.added(False)  # noqa: RUF009 (a field of a frozen class)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Towers ready to be trained.

    Attributes:
      towers: the two encoders.
      tokenizer: of both.
      params: host weights `{"shared": ...}` or `{"query": ..., "document": ...}`; None where all are drawn.
      sha256: a hash of the model started from; None where there is none.
    """

    towers: TowerPair
    tokenizer: Tokenizer
    params: dict[str, Params] | None
    sha256: str | None


def start_towers(towers: Towers, max_lengths: tuple[int, int], texts: Iterable[str], seed: int) -> Start:
    """Opens the model to start from, or trains a tokenizer for a new one.

    Args:
      towers: what the job asks for.
      max_lengths: tokens kept of a query and of a document.
      texts: what a new tokenizer learns from.
      seed: of weights that a model to start from lacks.

    Raises:
      DataError: the model is missing or malformed.
      UsageError: the model does not fit what the job asks for.
    """
    if towers.init_from:
        return _from_model(towers, max_lengths, load_towers(Path(towers.init_from)), seed)
    pair = planned_towers(towers, max_lengths)
    # Its texts end with a token of their own, whatever `append_end` says.
    tokenizer = Tokenizer.train_wordpiece(texts, pair.document.transformer.vocab_size)
    return Start(towers=pair, tokenizer=tokenizer, params=None, sha256=None)


def planned_towers(towers: Towers, max_lengths: tuple[int, int]) -> TowerPair:
    """The two encoders that `start_towers` would give, without a tokenizer, texts or weights.

    Args:
      towers: what the job asks for; its transformer, or that of the model it starts from.
      max_lengths: tokens kept of a query and of a document.

    Raises:
      DataError: the model is missing or malformed.
      UsageError: the model does not fit what the job asks for, or none is named.
    """
    if towers.init_from:
        return _pair_like(towers, max_lengths, load_towers(Path(towers.init_from), check="sizes"))
    if towers.transformer is None:
        raise UsageError("towers.init_from is not given; add `--towers.init-from DIR`, a model to start from")
    return _tower_pair(towers, (towers.transformer, towers.transformer), max_lengths)


def _from_model(towers: Towers, max_lengths: tuple[int, int], model: LoadedTowers, seed: int) -> Start:
    pair = _pair_like(towers, max_lengths, model)
    if not model.one_tokenizer:
        raise UsageError(
            f"the query tower of {towers.init_from} has a tokenizer of its own, and two towers are trained with one; "
            "start from the retriever that it was distilled from"
        )
    tokenizer = model.document.tokenizer
    return Start(
        towers=pair,
        tokenizer=closed_by_end(tokenizer, towers.init_from) if towers.append_end else tokenizer,
        params=_starting_params(pair, model, towers.init_from, seed),
        sha256=hashlib.sha256(typed_json.canonical(model.contract)).hexdigest(),
    )


def _pair_like(towers: Towers, max_lengths: tuple[int, int], model: LoadedTowers) -> TowerPair:
    """The two encoders with the transformers of a model."""
    if towers.shared and not model.shared:
        raise UsageError(
            f"towers.shared=True, but the towers of {towers.init_from} have weights of their own; "
            "add `--towers.no-shared`"
        )
    transformers = (model.query.config.transformer, model.document.config.transformer)
    for name, length, transformer in zip(("query", "document"), max_lengths, transformers, strict=True):
        if length > transformer.max_positions:
            raise UsageError(
                f"data.{name}_buckets ends at {length} tokens, but the model {towers.init_from} has "
                f"max_positions={transformer.max_positions}; end it there"
            )
    return _tower_pair(towers, transformers, max_lengths)


def _starting_params(pair: TowerPair, model: LoadedTowers, source: str, seed: int) -> dict[str, Params]:
    """The model's weights for one or two towers; a projection that the model lacks is drawn."""

    def of_side(side: Side) -> Params:
        encoder, wanted = model.encoder(side), pair.config(side).projection_dim
        got = encoder.config.projection_dim
        params = {**encoder.params, "transformer": headless_params(encoder.params["transformer"])}
        if got == wanted:
            return params
        if got is not None or wanted is None:
            raise UsageError(f"towers.projection_dim={wanted}, but the model {source} has one of {got} dims; use {got}")
        name = "projection" if pair.shared else f"{side}/projection"
        drawn = init_projection(encoder.config.transformer.d_model, wanted, named_key(jax.random.key(seed), name))
        return {**params, "projection": jax.tree.map(np.asarray, drawn)}

    return {"shared": of_side("document")} if pair.shared else {side: of_side(side) for side in SIDES}


def _tower_pair(
    towers: Towers, transformers: tuple[TransformerConfig, TransformerConfig], max_lengths: tuple[int, int]
) -> TowerPair:
    query, document = (
        EncoderConfig(
            transformer=_with_dropout(headless(transformer, both_ways=towers.both_ways), towers.dropout_rate),
            pooling=towers.pooling,
            normalize=towers.score == "cosine",
            projection_dim=towers.projection_dim,
            prefix=prefix,
            max_length=max_length,
        )
        for transformer, prefix, max_length in zip(
            transformers, (towers.query_prefix, towers.document_prefix), max_lengths, strict=True
        )
    )
    return TowerPair(query=query, document=document, shared=towers.shared, score=towers.score)


def _with_dropout(transformer: TransformerConfig, rate: float | None) -> TransformerConfig:
    return transformer if rate is None else dataclasses.replace(transformer, dropout_rate=rate)
