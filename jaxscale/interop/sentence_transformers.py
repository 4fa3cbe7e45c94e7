"""What sentence-transformers keeps beside a model: pooling, projection, normalisation, length limit, prompts."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from jaxscale.errors import DataError
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.tensor_files import open_tensors
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
    optional = [kind for kind in ("Dense", "Normalize") if kind in kinds]
    if kinds != ["Transformer", "Pooling", *optional]:
        raise DataError(
            f"{folder / 'modules.json'}: got the modules {', '.join(kinds)}; "
            "supported are Transformer, Pooling, an optional Dense and an optional Normalize, in this order"
        )
    query_prefix, document_prefix = _prefixes(folder / "config_sentence_transformers.json")
    return SentenceSettings(
        pooling=_pooling(folder / modules[1][1] / "config.json"),
        normalize="Normalize" in kinds,
        max_length=_max_length(folder, max_positions),
        query_prefix=query_prefix,
        document_prefix=document_prefix,
    )


def has_projection(folder: Path) -> bool:
    """Whether a folder's vectors go through a linear map after pooling."""
    return _dense(folder) is not None


def read_projection(folder: Path, d_model: int) -> Float32[np.ndarray, "D E"] | None:
    """The linear map that a folder's vectors go through after pooling; None where there is none.

    Args:
      folder: the model's folder.
      d_model: D.

    Raises:
      DataError: it has a bias, an activation or another shape, or is malformed.
    """
    dense = _dense(folder)
    if dense is None:
        return None
    config, tensors = JsonObject(dense / "config.json"), open_tensors(dense)
    config.refuse_unless("bias", bool, False)
    config.refuse_unless("use_residual", bool, False)
    activation = config.optional("activation_function", str, "Tanh")
    shape = (config.require("out_features", int), d_model)
    if activation.rpartition(".")[2] != "Identity":
        raise DataError(f"{config.path}: activation_function={activation!r} is not supported, only Identity")
    if set(tensors) != {"linear.weight"} or tensors["linear.weight"].shape != shape:
        got = {name: list(tensor.shape) for name, tensor in tensors.items()}
        raise DataError(f"{dense}: got the tensors {got}, expected linear.weight of shape {list(shape)}")
    kernel = np.ascontiguousarray(tensors["linear.weight"].read().astype(np.float32).T)
    if not np.isfinite(kernel).all():
        raise DataError(f"{dense}: tensor linear.weight holds numbers that are not finite")
    return kernel


def _dense(folder: Path) -> Path | None:
    """The folder of the Dense module."""
    if not (folder / "modules.json").is_file():
        return None
    return next((folder / path for kind, path in _modules(folder / "modules.json") if kind == "Dense"), None)


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
