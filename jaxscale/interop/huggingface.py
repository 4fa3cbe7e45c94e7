"""Folders as Hugging Face's transformers writes them, in and out: config.json, safetensors, tokenizer.json.

A folder is turned into a model folder tensor by tensor, and back: one of them is in memory at a time.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.interop.bert import BERT
from jaxscale.interop.family import Family
from jaxscale.interop.gpt2 import GPT2
from jaxscale.interop.json_file import JsonObject
from jaxscale.interop.llama import LLAMA
from jaxscale.interop.mapping import Place, Table
from jaxscale.interop.sentence_transformers import has_projection, read_settings
from jaxscale.interop.t5 import T5
from jaxscale.interop.tensor_files import StoredTensor, open_tensors, weight_files, write_tensors
from jaxscale.nn.config import EncoderDecoderConfig, TransformerConfig
from jaxscale.nn.model_folder import (
    PARAMS_FOLDER,
    ModelCard,
    ModelFolder,
    check_params,
    check_vocabulary,
    load_card,
    save_card,
)
from jaxscale.nn.text import end_of_text_id
from jaxscale.store import arrays
from jaxscale.store.checksums import Check
from jaxscale.store.chunks import Chunked, Index, chunk_shape

FAMILIES: tuple[Family[Any], ...] = (LLAMA, GPT2, BERT, T5)
CONFIG_FILE = "config.json"

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceFolder:
    """A folder whose tensors stay on disk until they are asked for.

    Attributes:
      path: the folder.
      card: what its model is.
      table: which of its tensors is which of our leaves.
      tensors: by the names that the table has.
    """

    path: Path
    card: ModelCard
    table: Table
    tensors: Mapping[str, StoredTensor]

    def parts(self, leaf: str) -> Iterator[tuple[Index, Float32[np.ndarray, "..."]]]:
        """The parts of one of our leaves, each read when it is asked for: where it stands, and its values.

        Raises:
          DataError: a tensor holds what is no finite number, or can't be read.
        """
        for place in self.table.places:
            if place.ours == leaf:
                at = (*(slice(i, i + 1) for i in place.index), *(slice(0, n) for n in place.rearranged.ours_shape))
                yield at, place.rearranged.as_ours(self._read(place))[(None,) * len(place.index)]

    def _read(self, place: Place) -> Float32[np.ndarray, "..."]:
        tensor = self.tensors[place.theirs]
        values = tensor.read().astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise DataError(f"{tensor.path}: tensor {tensor.name} holds numbers that are not finite")
        return values


def open_folder(path: str | Path) -> HuggingFaceFolder:
    """Opens a folder of one of `FAMILIES` and compares its tensors' names and shapes with what its config.json says.

    Args:
      path: holds config.json, model.safetensors (float32, float16 or bfloat16; or several and their index) and
        tokenizer.json or vocab.txt; the settings of sentence-transformers, where they are there too, become the
        model's settings.

    Raises:
      DataError: a file is missing or malformed, the architecture is another one, or a tensor is missing, unexpected or
        of a wrong shape; the message names it.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder")
    file = JsonObject(path / CONFIG_FILE)
    model_type = file.require("model_type", str)
    family = next((family for family in FAMILIES if model_type in family.model_types), None)
    if family is None:
        known = ", ".join(name for family in FAMILIES for name in family.model_types)
        raise DataError(f"{file.path}: model_type={model_type!r} is not supported; {known} are")
    stored = open_tensors(path)
    config = family.read(file, stored.keys())
    table = family.table(config)
    tensors = _checked(table, {table.canonical(name): tensor for name, tensor in stored.items()})
    tokenizer = _tokenizer(path)
    check_vocabulary(config, tokenizer)
    if isinstance(config, EncoderDecoderConfig):
        file.refuse_unless("decoder_start_token_id", int, tokenizer.pad_id)  # with which our targets begin
    card = ModelCard(
        config=config,
        tokenizer=tokenizer,
        settings=read_settings(path, config.max_positions),
        provenance={
            "source": "huggingface",
            "name": path.resolve().name,
            "model_type": model_type,
            **{name: _sha256(path / name) for name in (CONFIG_FILE, *weight_files(path))},
        },
    )
    return HuggingFaceFolder(path=path, card=card, table=table, tensors=tensors)


def import_model(path: str | Path) -> ModelFolder:
    """Reads a folder whole; see `open_folder`.

    Returns:
      The model, its parameters in float32.
    """
    folder = open_folder(path)
    params = {}
    for leaf, shape in folder.table.leaf_shapes().items():
        params[leaf] = np.empty(shape, np.float32)
        for index, values in folder.parts(leaf):
            params[leaf][index] = values
    fields = {field.name: getattr(folder.card, field.name) for field in dataclasses.fields(folder.card)}
    model = ModelFolder(**fields, params=arrays.nest(params))
    check_params(model.config, model.params)
    return model


def convert(path: str | Path, out: str | Path) -> str:
    """Commits a model folder out of a folder; no more than one of its tensors is in memory.

    Args:
      path: as for `open_folder`.
      out: the model folder; must not be there yet.

    Returns:
      Its identity.

    Raises:
      DataError: as `open_folder`, or a tensor is not finite.
      MachineError: the disk is full, or another writer is at work there.
      UsageError: something is at `out` already.
    """
    folder = open_folder(path)
    if has_projection(folder.path):
        raise DataError(
            f"{folder.path}: its vectors go through a Dense module, for which a model folder has no place; give the "
            "folder itself as --model, or to --init-from"
        )

    def write_params(directory: Path) -> None:
        for leaf, shape in folder.table.leaf_shapes().items():
            num_stacked = len(next(place.index for place in folder.table.places if place.ours == leaf))
            # A part is one layer's, or one expert's: the grid never puts two into one chunk.
            grid = (1,) * num_stacked + chunk_shape(shape[num_stacked:], np.dtype(np.float32).itemsize)
            like = Chunked(shape=shape, dtype=np.dtype(np.float32), parts=(), chunk_shape=grid)
            arrays.write_streamed(directory, leaf, folder.parts(leaf), like=like)

    return save_card(out, folder.card, write_params)


def export_model(
    path: str | Path,
    out: str | Path,
    *,
    dtype: DtypeName = "float32",
    max_file_bytes: int = 5 * 10**9,
    check: Check = "full",
) -> list[str]:
    """Writes a folder that transformers loads, out of a model folder; no more than one tensor is in memory.

    Args:
      path: the model folder.
      out: the folder to write; must not be there yet, and is there whole or not at all.
      dtype: of the tensors.
      max_file_bytes: of one file of tensors, unless a single tensor is larger.
      check: of the model folder, as for `load_model`.

    Returns:
      The names of the files.

    Raises:
      DataError: it is no model folder, or no family has its layout; the message says what differs.
      UsageError: something is at `out` already.
    """
    with whole_folder(Path(out)) as draft:
        read_into = functools.partial(arrays.read_into, Path(path) / PARAMS_FOLDER)
        return write_model(draft, load_card(path, check), read_into, dtype=dtype, max_file_bytes=max_file_bytes)


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which is at `out` once the block has ended well, and nowhere if it has not.

    Raises:
      UsageError: something is at `out` already.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; give another folder")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_model(
    folder: Path,
    card: ModelCard,
    read_into: Callable[[str, tuple[int, ...], Float32[np.ndarray, "..."]], None],
    *,
    dtype: DtypeName,
    max_file_bytes: int,
) -> list[str]:
    """Writes config.json, tensors and tokenizer of a model into a folder; one tensor is in memory at a time.

    Args:
      folder: where to; is there, and empty.
      card: what the model is.
      read_into: reads a part of one of its leaves, told by the leaf's path and an index for each of its first dims,
        into the array that it is given.
      dtype: of the tensors.
      max_file_bytes: as for `export_model`.

    Returns:
      The names of the files.

    Raises:
      DataError: no family has the model's layout; the message says what differs.
    """
    family = _family_of(card.config)
    places = family.table(card.config).by_tensor()

    def value_of(name: str) -> Float32[np.ndarray, "..."]:
        theirs = np.empty(places[name][0].rearranged.shape, np.float32)
        for place in places[name]:
            read_into(place.ours, place.index, place.rearranged.as_ours(theirs))
        return theirs

    shapes = {name: found[0].rearranged.shape for name, found in places.items()}
    files = write_tensors(folder, shapes, value_of, dtype=jnp.dtype(dtype), max_file_bytes=max_file_bytes)
    return files + _write_texts(folder, card, family, dtype)


def _family_of(config: TransformerConfig | EncoderDecoderConfig) -> Family[Any]:
    if isinstance(config, TransformerConfig) and config.lora is not None:
        raise DataError(
            "the model has factors of LoRA beside its weights; merge them first, by jaxscale.nn.lora.merged"
        )
    candidates = [family for family in FAMILIES if isinstance(config, family.kind)]
    nearest = min(candidates, key=lambda family: len(family.misfits(config)))
    if misfits := nearest.misfits(config):
        raise DataError(
            f"no family of transformers has this model's layout; the nearest, {', '.join(nearest.model_types)}, would "
            f"have to be told what it has no word for: {'; '.join(misfits)}"
        )
    return nearest


def _write_texts(folder: Path, card: ModelCard, family: Family[Any], dtype: DtypeName) -> list[str]:
    """Writes config.json and the tokenizer, and returns their names."""
    tokenizer, values = card.tokenizer, family.write(card.config, card.provenance.get("model_type"))
    end = end_of_text_id(tokenizer)
    values |= {
        "architectures": [_architecture(card.config, family.architectures[values["model_type"]])],
        "dtype": dtype,
        "bos_token_id": tokenizer.opening_ids[0] if tokenizer.opening_ids else end,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_id,
    }
    if isinstance(card.config, EncoderDecoderConfig):
        values["decoder_start_token_id"] = tokenizer.pad_id
    named = {"eos_token": end, "pad_token": tokenizer.pad_id}
    texts = {
        CONFIG_FILE: values,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{role: tokenizer.token(id) for role, id in named.items() if id is not None},
        },
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(folder / "tokenizer.json")
    return [*texts, "tokenizer.json"]


def _architecture(config: TransformerConfig | EncoderDecoderConfig, whole: str) -> str:
    """The class that a model is loaded as: the whole one's, or that of the bare model where there is no output."""
    has_output = isinstance(config, EncoderDecoderConfig) or (config.kind == "decoder" and not config.headless)
    return whole if has_output else re.sub("(ForCausalLM|LMHeadModel)$", "Model", whole)


def _checked(table: Table, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that the table has places for, once there are no others and their shapes are right."""
    expected = table.shapes()
    for name, shape in expected.items():
        if name not in tensors:
            where = next(iter(tensors.values())).path if tensors else "the folder"
            raise DataError(f"{where}: tensor {name} of shape {list(shape)} is missing")
        if tensors[name].shape != shape:
            tensor = tensors[name]
            raise DataError(
                f"{tensor.path}: tensor {tensor.name} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
    for name, tensor in sorted(tensors.items()):
        if name in expected or table.ignores(name):
            continue
        if name not in table.copies:
            raise DataError(f"{tensor.path}: unexpected tensor {tensor.name} of shape {list(tensor.shape)}")
        original = tensors[table.copies[name]]
        if not np.array_equal(tensor.read(), original.read()):
            raise DataError(f"{tensor.path}: tensor {tensor.name} must equal {original.name}, which it is tied to")
    return {name: tensors[name] for name in expected}


def _tokenizer(path: Path) -> Tokenizer:
    others = [name for name in ("tokenizer.model", "spiece.model", "merges.txt") if (path / name).is_file()]
    if others and not (path / "tokenizer.json").is_file():
        raise DataError(
            f"{path / 'tokenizer.json'}: there is no such file, only {others[0]}; make it with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return Tokenizer.load(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
