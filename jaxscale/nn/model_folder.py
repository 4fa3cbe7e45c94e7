"""A model kept as a committed directory: `jaxscale.model`, written down in docs/formats/model-folder.md."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import EncoderDecoderConfig, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.store import arrays, commit
from jaxscale.store.checksums import Check

FORMAT = "jaxscale.model"
VERSION = 3
# What every model did before version 2 could say otherwise.
_SINCE_VERSION_2 = {"rope_scaling": None, "scaled_scores": True, "parallel": False, "experts": None}
MODEL_FILE = "model.json"
TOKENIZER_FILE = "tokenizer.json"
PARAMS_FOLDER = "params"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """How a model that embeds sentences was made to be used.

    Attributes:
      pooling: which hidden states become the vector.
      normalize: whether vectors are scaled to length 1.
      max_length: tokens kept of a text, special tokens included.
      query_prefix: text put before every query.
      document_prefix: text put before every document.
    """

    pooling: Literal["mean", "cls", "last"]
    normalize: bool
    max_length: int
    query_prefix: str
    document_prefix: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is, without the numbers that it learned.

    Attributes:
      config: the model.
      tokenizer: turns text into its ids.
      settings: how it embeds sentences; None where it was not made to.
      provenance: where it came from, name to text, e.g. `{"source": "huggingface", "model.safetensors": <sha256>}`.
    """

    config: TransformerConfig | EncoderDecoderConfig
    tokenizer: Tokenizer
    settings: SentenceSettings | None
    provenance: dict[str, str]

    @property
    def transformer(self) -> TransformerConfig:
        """The configuration of the one Transformer that the model is.

        Raises:
          UsageError: it is an encoder-decoder.
        """
        if isinstance(self.config, EncoderDecoderConfig):
            raise UsageError("the model is an encoder-decoder, which reads a source; expected a decoder or an encoder")
        return self.config


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFolder(ModelCard):
    """A Transformer, or an encoder-decoder, with its parameters and its tokenizer.

    Attributes:
      params: its parameters, float32, the tree described in `jaxscale.nn.functional`.
    """

    params: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Text:
    """What model.json holds of a Transformer."""

    config: TransformerConfig
    settings: SentenceSettings | None
    provenance: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EncoderDecoderText:
    """What it holds of an encoder-decoder; told apart by its configuration's two parts."""

    config: EncoderDecoderConfig
    settings: SentenceSettings | None
    provenance: dict[str, str]


def save_model(path: str | Path, model: ModelFolder, *, replace: bool = False) -> str:
    """Commits a model folder at `path`.

    Args:
      path: the folder; must not be there yet.
      model: what to write.
      replace: whether a model folder that is there is replaced, in one step.

    Returns:
      The folder's identity, 64 hexadecimal digits.

    Raises:
      DataError: the parameters or the tokenizer do not fit the configuration.
      MachineError: the disk is full, or another writer is at work there.
      UsageError: something is there already.
    """
    check_params(model.config, model.params)
    return save_card(path, model, lambda folder: arrays.write_tree(folder, model.params), replace=replace)


def save_card(path: str | Path, card: ModelCard, write_params: Callable[[Path], None], *, replace: bool = False) -> str:
    """As `save_model`, with the parameters written by a function.

    Args:
      path: the folder.
      card: what the model is.
      write_params: writes every leaf below the folder it is given, in the shapes that the configuration asks for.
      replace: as for `save_model`.
    """
    check_vocabulary(card.config, card.tokenizer)
    values = {"config": card.config, "settings": card.settings, "provenance": card.provenance}
    with commit.draft(path, format=FORMAT, version=VERSION, replace=replace) as draft:
        text = json.dumps(typed_json.encode(values), indent=2, sort_keys=True, ensure_ascii=False)
        (draft.path / MODEL_FILE).write_text(text + "\n", encoding="utf-8")
        card.tokenizer.save(draft.path / TOKENIZER_FILE)
        write_params(draft.path / PARAMS_FOLDER)
        draft.config = typed_json.encode(values)
        draft.counts["params"] = card.config.num_params
    return commit.open_committed(path, format=FORMAT).manifest.identity


def load_card(path: str | Path, check: Check = "full") -> ModelCard:
    """Opens a model folder without its parameters; arguments and errors as for `load_model`."""
    committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
    text = json.loads((committed.path / MODEL_FILE).read_text(encoding="utf-8"))
    if committed.manifest.version == 1:
        text["config"] |= _SINCE_VERSION_2
    two_parts = isinstance(text, dict) and isinstance(text.get("config"), dict) and "encoder" in text["config"]
    kind: type[_Text | _EncoderDecoderText] = _EncoderDecoderText if two_parts else _Text
    read = typed_json.decode(kind, text, MODEL_FILE)
    tokenizer = Tokenizer.load(committed.path / TOKENIZER_FILE)
    check_vocabulary(read.config, tokenizer)
    return ModelCard(config=read.config, tokenizer=tokenizer, settings=read.settings, provenance=read.provenance)


def load_model(path: str | Path, check: Check = "full") -> ModelFolder:
    """Opens a model folder.

    Args:
      path: the folder.
      check: `full` compares every byte with the manifest, `sizes` names and sizes only.

    Returns:
      The model; its parameters are numpy arrays in float32.

    Raises:
      DataError: it is no model folder, or its parts do not fit one another.
      VerificationError: it is damaged; the message names the file.
    """
    card = load_card(path, check)
    params = arrays.read_tree(Path(path) / PARAMS_FOLDER)
    check_params(card.config, params)
    return ModelFolder(
        config=card.config,
        params=params,
        tokenizer=card.tokenizer,
        settings=card.settings,
        provenance=card.provenance,
    )


def check_params(config: TransformerConfig | EncoderDecoderConfig, params: Params) -> None:
    """Compares a tree of parameters with the one that `config` asks for.

    Raises:
      DataError: naming the first leaf that is missing, unexpected, of another shape or not finite.
    """
    expected = arrays.named_leaves(jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0))))
    got = arrays.named_leaves(params)
    for path in sorted(expected.keys() | got.keys()):
        if path not in got:
            raise DataError(f"parameter {path} of shape {expected[path].shape} is missing")
        if path not in expected:
            raise DataError(
                f"parameter {path} of shape {got[path].shape} is unexpected: the configuration has no use for it"
            )
        if got[path].shape != expected[path].shape:
            raise DataError(f"parameter {path}: got shape {got[path].shape}, expected {expected[path].shape}")
        if isinstance(got[path], np.ndarray) and not np.isfinite(got[path]).all():
            raise DataError(f"parameter {path} holds numbers that are not finite")


def check_vocabulary(config: TransformerConfig | EncoderDecoderConfig, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer with more ids than the model has rows.

    Raises:
      DataError: it has.
    """
    vocab_size = config.decoder.vocab_size if isinstance(config, EncoderDecoderConfig) else config.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size={vocab_size}: "
            "these two do not belong together"
        )
