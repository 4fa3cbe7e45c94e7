"""Where a re-ranker starts: from a model's weights and tokenizer, or from nothing."""

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
from jaxscale.store.checksums import Check
from retrieval.reranking.cross_encoder import CrossEncoder, CrossEncoderConfig, init_head
from retrieval.reranking.folder import is_reranker, read_reranker
from retrieval.towers.encoder import Pooling
from retrieval.towers.loading import load_towers


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankerModel:
    """The cross-encoder.

    Attributes:
      init_from: a model to start from: a re-ranker, a retriever (its document tower, without a projection), a model or
        run folder, or a Hugging Face folder; its transformer, tokenizer and weights are taken, and a re-ranker's head.
        Empty: random weights, and a tokenizer trained on the corpus.
      transformer: the network where `init_from` is empty; its `vocab_size` is also the size asked of the tokenizer.
      pooling: which hidden states of the joint text are scored.
      dropout_rate: while training; None leaves the transformer's own.
      remat: what of each layer the backward pass computes again; large models need it.
    """

    init_from: str = ""
    transformer: TransformerConfig | None = None
    pooling: Pooling = "cls"
    dropout_rate: float | None = None
    remat: Remat = False

    def check(self) -> None:
        """Refuses a model with no network, or with two.

        Raises:
          UsageError: naming both fields.
        """
        if not self.init_from and self.transformer is None:
            raise UsageError("model.init_from is not given; add `--model.init-from DIR`, a model to start from")
        if self.init_from and self.transformer is not None:
            raise UsageError(
                f"model.init_from={self.init_from!r} brings its own transformer, but model.transformer is given too; "
                "use one of them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """A cross-encoder ready to be trained.

    Attributes:
      model: the cross-encoder; without weights (an empty tree) where all are drawn.
      sha256: a hash of the model started from; None where there is none.
    """

    model: CrossEncoder
    sha256: str | None

    @property
    def params(self) -> Params | None:
        """Host weights to start from, or None."""
        return self.model.params or None


def start_reranker(asked: RerankerModel, max_length: int, texts: Iterable[str], seed: int) -> Start:
    """Opens the model to start from, or trains a tokenizer for a new one.

    Args:
      asked: what the job asks for.
      max_length: tokens of query and document together.
      texts: what a new tokenizer learns from.
      seed: of a head that the model to start from lacks.

    Raises:
      DataError: the model is missing or malformed, or its tokenizer can't join two texts.
      UsageError: the model does not fit what the job asks for.
    """
    if asked.init_from:
        found, sha256 = _open(asked.init_from, "full")
        key = named_key(jax.random.key(seed), "head")
        head = found.params.get("head") or jax.tree.map(np.asarray, init_head(found.config.transformer.d_model, key))
        config = _config(asked, found.config.transformer, max_length)
        model = CrossEncoder(config=config, params={**found.params, "head": head}, tokenizer=found.tokenizer)
    else:
        config, sha256 = planned_reranker(asked, max_length), None
        tokenizer = Tokenizer.train_wordpiece(texts, config.transformer.vocab_size)
        model = CrossEncoder(config=config, params={}, tokenizer=tokenizer)
    _ = model.frame  # a tokenizer that can't join two texts is refused before anything is tokenised
    return Start(model=model, sha256=sha256)


def planned_reranker(asked: RerankerModel, max_length: int) -> CrossEncoderConfig:
    """The cross-encoder without its weights; a model to start from is opened for its shapes.

    Args:
      asked: what the job asks for.
      max_length: tokens of query and document together.
    """
    if asked.transformer is not None:
        return _config(asked, asked.transformer, max_length)
    return _config(asked, _open(asked.init_from, "sizes")[0].config.transformer, max_length)


def _open(path: str, check: Check) -> tuple[CrossEncoder, str]:
    """The model at a path, with a head where it is a re-ranker's, and a hash of it."""
    if is_reranker(Path(path)):
        folder = read_reranker(Path(path), check=check)
        return folder.model, folder.identity
    towers = load_towers(Path(path), check=check)
    document = towers.document
    config = CrossEncoderConfig(
        transformer=headless(document.config.transformer), pooling="cls", max_length=document.config.max_length
    )
    params = {"transformer": headless_params(document.params["transformer"])}
    sha256 = hashlib.sha256(typed_json.canonical(towers.contract)).hexdigest()
    return CrossEncoder(config=config, params=params, tokenizer=document.tokenizer), sha256


def _config(asked: RerankerModel, transformer: TransformerConfig, max_length: int) -> CrossEncoderConfig:
    if max_length > transformer.max_positions:
        raise UsageError(
            f"data.buckets ends at {max_length} tokens, but the transformer has "
            f"max_positions={transformer.max_positions}; end it there"
        )
    if asked.dropout_rate is not None:
        transformer = dataclasses.replace(transformer, dropout_rate=asked.dropout_rate)
    return CrossEncoderConfig(transformer=headless(transformer), pooling=asked.pooling, max_length=max_length)
