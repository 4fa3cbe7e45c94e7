"""The settings that sentence-transformers keeps beside a model: pooling, normalisation, length limit, prompts."""

import json
from pathlib import Path
from typing import Literal

from jaxscale.errors import DataError
from jaxscale.interop.json_file import JsonObject
from jaxscale.nn.model_folder import SentenceSettings

Pooling = Literal["mean", "cls", "last"]

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# Folders written before version 6 say it by one boolean per mode.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# "No limit" is written as a huge number.
_UNLIMITED = 10**9


def read_settings(folder: Path, max_positions: int) -> SentenceSettings | None:
    """The settings of a sentence-transformers folder; None where `folder` has no modules.json.

    Args:
      folder: the model's folder.
      max_positions: the model's own limit in tokens.

    Raises:
      DataError: the folder's modules compute something that is not supported here.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = _modules(folder / "modules.json")
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise DataError(
            f"{folder / 'modules.json'}: got the modules {', '.join(kinds)}; "
            "supported are Transformer, Pooling and an optional Normalize"
        )
    query_prefix, document_prefix = _prefixes(folder / "config_sentence_transformers.json")
    return SentenceSettings(
        pooling=_pooling(folder / modules[1][1] / "config.json"),
        normalize="Normalize" in kinds,
        max_length=_max_length(folder, max_positions),
        query_prefix=query_prefix,
        document_prefix=document_prefix,
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) of each module, in their order."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [(entry["type"].rpartition(".")[2], entry["path"]) for entry in sorted(entries, key=lambda e: e["idx"])]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: expected a list of objects with idx, path and type") from None


def _pooling(path: Path) -> Pooling:
    config = JsonObject(path)
    config.refuse_unless("include_prompt", bool, True)
    old = [mode for key, mode in _OLD_POOLING_KEYS.items() if config.optional(key, bool, False)]
    modes = [config.require("pooling_mode", str)] if "pooling_mode" in config.values else old or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise DataError(f"{path}: pooling {'+'.join(modes)} is not supported; one of {', '.join(_POOLINGS)} is")
    return _POOLINGS[modes[0]]


def _max_length(folder: Path, max_positions: int) -> int:
    limit = _UNLIMITED
    if (folder / "sentence_bert_config.json").is_file():
        limit = JsonObject(folder / "sentence_bert_config.json").optional("max_seq_length", int, _UNLIMITED)
    if limit == _UNLIMITED and (folder / "tokenizer_config.json").is_file():
        limit = int(JsonObject(folder / "tokenizer_config.json").optional("model_max_length", float, float(_UNLIMITED)))
    return min(limit, max_positions)


def _prefixes(path: Path) -> tuple[str, str]:
    """The prompts of queries and of documents, found by the names that encode_query and encode_document look for."""
    if not path.is_file():
        return "", ""
    config = JsonObject(path)
    prompts = config.optional("prompts", dict, {})
    default = config.optional("default_prompt_name", str, "")
    if default and default not in prompts:
        raise DataError(f"{path}: default_prompt_name={default!r} is none of the prompts {', '.join(prompts)}")
    return _first(prompts, ("query", default)), _first(prompts, ("document", "passage", "corpus", default))


def _first(prompts: dict[str, str], names: tuple[str, ...]) -> str:
    return next((prompts[name] for name in names if name in prompts), "")
