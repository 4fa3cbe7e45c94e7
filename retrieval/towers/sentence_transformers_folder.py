"""A retriever's tower as a folder that sentence-transformers loads: modules, tensors, tokenizer, prompts, length limit.

The names of modules and the keys of their configurations are those that all versions of the library read since 2.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxscale.errors import UsageError
from jaxscale.interop.huggingface import DtypeName, whole_folder, write_model
from jaxscale.interop.tensor_files import write_tensors
from jaxscale.nn.functional import Params
from jaxscale.nn.model_folder import ModelCard
from jaxscale.store import arrays
from retrieval.towers.encoder import SIDES, Encoder, Pooling, Side
from retrieval.towers.retriever_folder import LoadedTowers

_POOLING_KEYS: dict[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}
_MODULE = "sentence_transformers.models."
_IDENTITY = "torch.nn.modules.linear.Identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportedTower:
    """What was written.

    Attributes:
      files: their names.
      modules: in their order.
      max_length: tokens kept of a text.
      cut_here_only: the side whose texts are cut at fewer tokens here, and at how many; None where it is the same.
    """

    files: list[str]
    modules: list[str]
    max_length: int
    cut_here_only: tuple[Side, int] | None


def export_tower(
    towers: LoadedTowers,
    out: Path,
    *,
    side: Side | None = None,
    dtype: DtypeName = "float32",
    max_file_bytes: int = 5 * 10**9,
) -> ExportedTower:
    """Writes a folder for `SentenceTransformer(out)`, whose `encode_query` and `encode_document` give these vectors.

    Args:
      towers: the retriever.
      out: the folder to write; must not be there yet, and is there whole or not at all.
      side: of towers with weights of their own, or of which one alone is wanted; None for both in one folder.
      dtype: of the tensors.
      max_file_bytes: of one file of tensors.

    Raises:
      DataError: no family of transformers has the layout of the tower's transformer; the message says what differs.
      UsageError: something is at `out` already, or the two towers don't fit into one folder.
    """
    sides = SIDES if side is None else (side,)
    encoders = [towers.encoder(name) for name in sides]
    if side is None:
        _require_one(towers)
    longest = max(encoders, key=lambda encoder: encoder.config.max_length)
    shorter = [
        (name, encoder.config.max_length)
        for name, encoder in zip(sides, encoders, strict=True)
        if encoder.config.max_length < longest.config.max_length
    ]
    prompts = {name: encoder.config.prefix for name, encoder in zip(sides, encoders, strict=True)}
    with whole_folder(out) as draft:
        files = _write_transformer(draft, longest, dtype, max_file_bytes)
        modules = _write_modules(draft, longest, dtype)
        _write_json(
            draft / "config_sentence_transformers.json",
            {
                "prompts": prompts,
                # `encode` without a prompt's name is that of the one side; of two it has none.
                "default_prompt_name": side,
                "similarity_fn_name": towers.contract.score,
            },
        )
    return ExportedTower(
        files=[*files, "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"],
        modules=modules,
        max_length=longest.config.max_length,
        cut_here_only=shorter[0] if shorter else None,
    )


def _require_one(towers: LoadedTowers) -> None:
    """Refuses to put towers into one folder that differ in more than prefix and length limit."""
    advice = "write them one by one, with `--side query` and, to another folder, `--side document`"
    if not towers.shared:
        raise UsageError(f"the towers have weights of their own, and a folder of sentence-transformers one; {advice}")
    query, document = (dataclasses.replace(e.config, prefix="", max_length=1) for e in (towers.query, towers.document))
    if query != document:
        raise UsageError(f"the towers compute differently: {query}, but {document}; {advice}")


def _write_transformer(folder: Path, encoder: Encoder, dtype: DtypeName, max_file_bytes: int) -> list[str]:
    """Writes the transformer and the tokenizer, as transformers has them, and returns the names of the files."""
    card = ModelCard(config=encoder.config.transformer, tokenizer=encoder.tokenizer, settings=None, provenance={})
    read_into = functools.partial(_read_leaf, arrays.named_leaves(encoder.params["transformer"]))
    files = write_model(folder, card, read_into, dtype=dtype, max_file_bytes=max_file_bytes)
    tokenizer_config = folder / "tokenizer_config.json"
    said = json.loads(tokenizer_config.read_text(encoding="utf-8"))
    # A decoder takes no token types; an encoder's are all of the first type where none are given.
    inputs = {"model_max_length": encoder.config.max_length, "model_input_names": ["input_ids", "attention_mask"]}
    _write_json(tokenizer_config, said | inputs)
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": encoder.config.max_length, "do_lower_case": False}
    )
    return files


def _read_leaf(leaves: Params, name: str, at: tuple[int, ...], values: Float32[np.ndarray, "..."]) -> None:
    values[...] = np.asarray(leaves[name][at])


def _write_modules(folder: Path, encoder: Encoder, dtype: DtypeName) -> list[str]:
    """Writes what comes after the transformer, and the list of all modules; returns their names."""
    config, d_model = encoder.config, encoder.config.transformer.d_model
    modules: list[tuple[str, str]] = [("Transformer", "")]

    def add(kind: str, values: dict[str, Any]) -> Path:
        path = folder / f"{len(modules)}_{kind}"
        path.mkdir()
        _write_json(path / "config.json", values)
        modules.append((kind, path.name))
        return path

    pooling = {key: config.pooling == mode for mode, key in _POOLING_KEYS.items()}
    add("Pooling", {"word_embedding_dimension": d_model, **pooling, "include_prompt": True})
    if config.projection_dim is not None:
        sizes = {"in_features": d_model, "out_features": config.projection_dim}
        dense = add("Dense", {**sizes, "bias": False, "activation_function": _IDENTITY})
        weight = np.asarray(encoder.params["projection"]["kernel"]).T
        shapes = {"linear.weight": weight.shape}
        write_tensors(dense, shapes, lambda _: weight, dtype=np.dtype(dtype), max_file_bytes=weight.nbytes)
    if config.normalize:
        add("Normalize", {})
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{_MODULE}{kind}"} for i, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    return [kind for kind, _ in modules]


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
