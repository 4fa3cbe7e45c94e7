"""Where a job's towers start: from a model's weights and tokenizer, or from nothing."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import UsageError
from jaxscale.nn import lora
from jaxscale.nn.config import LoRAConfig, Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.headless import headless, headless_params
from jaxscale.nn.keys import named_key
from jaxscale.nn.text import closed_by_end
from jaxscale.store.checksums import Check
from retrieval.contract import Score
from retrieval.towers.encoder import (
    SIDES,
    Encoder,
    EncoderConfig,
    Pooling,
    Side,
    TowerPair,
    init_encoder,
    init_projection,
)
from retrieval.towers.loading import load_towers


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
      lora: trains narrow factors beside the weights of the model started from, which stay as they are; None trains all.
        The exported retriever has both merged.
      lora_on: which tower, where each has weights of its own; the other is trained whole.
      query_init_from: a model for the query tower alone to start from, another than `init_from`, perhaps a smaller one;
        it may have a tokenizer of its own. Empty: the same for both.
      query_transformer: a network for the query tower alone, with random weights and the tokenizer of the other.
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
    lora: LoRAConfig | None = typed_json.added(None)  # noqa: RUF009 (a field of a frozen class)
    lora_on: Literal["both", "query", "document"] = typed_json.added("both")
    query_init_from: str = typed_json.added("")
    query_transformer: TransformerConfig | None = typed_json.added(None)  # noqa: RUF009 (a field of a frozen class)

    def __post_init__(self) -> None:
        own = "query_init_from" if self.query_init_from else "query_transformer" if self.query_transformer else ""
        if own and self.shared:
            raise UsageError(f"towers.{own} is given, but towers.shared=True; add `--towers.no-shared`")
        if self.query_init_from and self.query_transformer is not None:
            raise UsageError(
                f"towers.query_init_from={self.query_init_from!r} brings its own transformer, but "
                "towers.query_transformer is given too; use one of them"
            )
        if self.query_transformer is not None and self.lora is not None and self.lora_on != "document":
            raise UsageError(
                "towers.lora leaves the weights started from as they are, but the query tower starts from random ones; "
                "add `--towers.lora-on document`"
            )
        if self.lora_on != "both" and (self.shared or self.lora is None):
            raise UsageError(
                f"towers.lora_on={self.lora_on!r} needs towers.lora, and weights for each side; add "
                "`--towers.no-shared`"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Towers ready to be trained.

    Attributes:
      towers: the two encoders.
      tokenizer: of documents.
      query_tokenizer: of queries; most often the same.
      params: host weights `{"shared": ...}` or `{"query": ..., "document": ...}`; None where all are drawn.
      sha256: a hash of the model started from; None where there is none.
      query_sha256: the same of `query_init_from`.
    """

    towers: TowerPair
    tokenizer: Tokenizer
    query_tokenizer: Tokenizer
    params: dict[str, Params] | None
    sha256: str | None
    query_sha256: str | None = None

    @property
    def one_tokenizer(self) -> bool:
        """Whether queries and documents are made of the same tokens."""
        return self.query_tokenizer.fingerprint == self.tokenizer.fingerprint

    @property
    def pad_id(self) -> int:
        """What fills rows of queries and of documents; nothing reads it, but every table must have it."""
        return self.tokenizer.pad_id if self.one_tokenizer else 0


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
        return _from_models(towers, max_lengths, _open_models(towers, "full"), seed)
    pair = planned_towers(towers, max_lengths)
    # Its texts end with a token of their own, whatever `append_end` says.
    tokenizer = Tokenizer.train_wordpiece(texts, pair.document.transformer.vocab_size)
    _require_vocabulary(pair.query, tokenizer)
    return Start(towers=pair, tokenizer=tokenizer, query_tokenizer=tokenizer, params=None, sha256=None)


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
        return _pair_like(towers, max_lengths, _open_models(towers, "sizes"))
    if towers.transformer is None or towers.query_init_from:
        raise UsageError("towers.init_from is not given; add `--towers.init-from DIR`, a model to start from")
    return _tower_pair(towers, (towers.query_transformer or towers.transformer, towers.transformer), max_lengths)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    """What one tower starts from: a folder, and the encoder of its side that the folder holds."""

    source: str
    encoder: Encoder
    shared: bool
    sha256: str


# None where a tower starts from nothing.
_Models = dict[Side, _Model | None]


def _open_models(towers: Towers, check: Check) -> _Models:
    """The models of both towers, of which the documents' is there."""

    def opened(source: str) -> dict[Side, _Model]:
        model = load_towers(Path(source), check=check)
        sha256 = hashlib.sha256(typed_json.canonical(model.contract)).hexdigest()
        return {
            side: _Model(source=source, encoder=model.encoder(side), shared=model.shared, sha256=sha256)
            for side in SIDES
        }

    models: _Models = {**opened(towers.init_from)}
    if towers.query_init_from:
        models["query"] = opened(towers.query_init_from)["query"]
    elif towers.query_transformer is not None:
        models["query"] = None
    return models


def _from_models(towers: Towers, max_lengths: tuple[int, int], models: _Models, seed: int) -> Start:
    pair, documents, queries = _pair_like(towers, max_lengths, models), models["document"], models["query"]
    assert documents is not None  # the only model, where there is one

    def tokenizer_of(model: _Model) -> Tokenizer:
        tokenizer = model.encoder.tokenizer
        return closed_by_end(tokenizer, model.source) if towers.append_end else tokenizer

    query_tokenizer = tokenizer_of(queries or documents)
    _require_vocabulary(pair.query, query_tokenizer)
    return Start(
        towers=pair,
        tokenizer=tokenizer_of(documents),
        query_tokenizer=query_tokenizer,
        params=_starting_params(pair, models, seed),
        sha256=documents.sha256,
        query_sha256=queries.sha256 if queries is not None and towers.query_init_from else None,
    )


def _require_vocabulary(query: EncoderConfig, tokenizer: Tokenizer) -> None:
    """Refuses a query tower without rows for all tokens."""
    if tokenizer.vocab_size > query.transformer.vocab_size:
        raise UsageError(
            f"towers.query_transformer.vocab_size={query.transformer.vocab_size} is less than the "
            f"{tokenizer.vocab_size} tokens of the tokenizer; use so many"
        )


def _pair_like(towers: Towers, max_lengths: tuple[int, int], models: _Models) -> TowerPair:
    """The two encoders with the transformers of models."""
    transformers: dict[Side, TransformerConfig] = {}
    for side, length in zip(SIDES, max_lengths, strict=True):
        model = models[side]
        if model is None:
            assert towers.query_transformer is not None  # or there would be a model
            transformers[side] = towers.query_transformer
            continue
        if towers.shared and not model.shared:
            raise UsageError(
                f"towers.shared=True, but the towers of {model.source} have weights of their own; "
                "add `--towers.no-shared`"
            )
        transformers[side] = model.encoder.config.transformer
        if length > transformers[side].max_positions:
            raise UsageError(
                f"data.{side}_buckets ends at {length} tokens, but the model {model.source} has "
                f"max_positions={transformers[side].max_positions}; end it there"
            )
    return _tower_pair(towers, (transformers["query"], transformers["document"]), max_lengths)


def _starting_params(pair: TowerPair, models: _Models, seed: int) -> dict[str, Params]:
    """The models' weights for one or two towers; a projection or factors that a model lacks are drawn."""

    def key(side: Side, name: str) -> jax.Array:
        return named_key(jax.random.key(seed), name if pair.shared else f"{side}/{name}")

    def of_side(side: Side) -> Params:
        config, model = pair.config(side), models[side]
        if model is None:
            return jax.tree.map(np.asarray, jax.jit(lambda: init_encoder(config, key(side, "tower")))())
        params = {**model.encoder.params, "transformer": headless_params(model.encoder.params["transformer"])}
        if config.transformer.lora is not None:
            factors = lora.drawn_factors(config.transformer, key(side, "lora"))
            params["transformer"] = lora.joined(params["transformer"], factors)
        return _with_projection(params, config, model, key(side, "projection"))

    return {"shared": of_side("document")} if pair.shared else {side: of_side(side) for side in SIDES}


def _with_projection(params: Params, config: EncoderConfig, model: _Model, key: jax.Array) -> Params:
    got, wanted = model.encoder.config.projection_dim, config.projection_dim
    if got == wanted:
        return params
    if got is not None or wanted is None:
        raise UsageError(
            f"towers.projection_dim={wanted}, but the model {model.source} has one of {got} dims; use {got}"
        )
    drawn = init_projection(config.transformer.d_model, wanted, key)
    return {**params, "projection": jax.tree.map(np.asarray, drawn)}


def _tower_pair(
    towers: Towers, transformers: tuple[TransformerConfig, TransformerConfig], max_lengths: tuple[int, int]
) -> TowerPair:
    query, document = (
        EncoderConfig(
            transformer=dataclasses.replace(
                _with_dropout(headless(transformer, both_ways=towers.both_ways), towers.dropout_rate),
                lora=towers.lora if towers.lora_on in ("both", side) else None,
            ),
            pooling=towers.pooling,
            normalize=towers.score == "cosine",
            projection_dim=towers.projection_dim,
            prefix=prefix,
            max_length=max_length,
        )
        for side, transformer, prefix, max_length in zip(
            SIDES, transformers, (towers.query_prefix, towers.document_prefix), max_lengths, strict=True
        )
    )
    return TowerPair(query=query, document=document, shared=towers.shared, score=towers.score)


def _with_dropout(transformer: TransformerConfig, rate: float | None) -> TransformerConfig:
    return transformer if rate is None else dataclasses.replace(transformer, dropout_rate=rate)
