"""The tensors of a Hugging Face folder: read one by one by name, and written one by one, in one or several safetensors.

Format: https://github.com/huggingface/safetensors#format and, for several files, model.safetensors.index.json, which
names the file of every tensor. The library reads; it writes only what is in memory whole, so files are written here.
"""

import dataclasses
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Float, Float32

from jaxscale.errors import DataError
from jaxscale.interop.json_file import JsonObject

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_HEADER_LENGTH = struct.Struct("<Q")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that stays on disk until it is read.

    Attributes:
      name: in the file.
      path: of the file.
      code: its dtype as the format writes it.
      shape: its shape.
    """

    name: str
    path: Path
    code: str
    shape: tuple[int, ...]

    def read(self) -> Float[np.ndarray, "..."]:
        """Its values in the dtype they are kept in.

        Raises:
          DataError: the dtype is none of `DTYPES`.
        """
        if self.code not in DTYPES:
            raise DataError(f"{self.path}: tensor {self.name} is {self.code}, expected one of {', '.join(DTYPES)}")
        with safetensors.safe_open(self.path, "numpy") as file:
            return file.get_tensor(self.name)


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors that a folder holds, by name; nothing but headers is read.

    Raises:
      DataError: there are no safetensors, or a file is missing, damaged or does not hold what the index says.
    """
    if (folder / INDEX_FILE).is_file():
        return _indexed(folder)
    if (folder / WEIGHTS_FILE).is_file():
        return _header(folder / WEIGHTS_FILE)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise DataError(
            f"{folder / WEIGHTS_FILE}: there is no such file, only pickled weights ({', '.join(pickles[:3])}), which "
            "can run any code and are not read; where you trust them, load the model with transformers and save it by "
            "model.save_pretrained(DIR)"
        )
    raise DataError(f"{folder / WEIGHTS_FILE}: there is no such file, nor {INDEX_FILE}")


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a folder's tensors, and of their index."""
    files = sorted({tensor.path.name for tensor in open_tensors(folder).values()})
    return [*files, INDEX_FILE] if (folder / INDEX_FILE).is_file() else files


def _indexed(folder: Path) -> dict[str, StoredTensor]:
    index = JsonObject(folder / INDEX_FILE)
    files: dict[str, Any] = index.require("weight_map", dict)
    found: dict[str, StoredTensor] = {}
    for file in sorted({str(file) for file in files.values()}):
        if Path(file).name != file:
            raise DataError(f"{index.path}: file {file!r} must be a name in the same folder")
        found |= _header(folder / file)
    held = {name: tensor.path.name for name, tensor in found.items()}
    for name in sorted(files.keys() | held.keys()):
        if files.get(name) != held.get(name):
            said, where = files.get(name, "no file"), held.get(name, "no file")
            raise DataError(f"{index.path}: tensor {name} is said to be in {said}, but is in {where}")
    return found


def _header(path: Path) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return {
                name: StoredTensor(name=name, path=path, code=part.get_dtype(), shape=tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except safetensors.SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}") from None


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    value_of: Callable[[str], Float32[np.ndarray, "..."]],
    *,
    dtype: np.dtype,
    max_file_bytes: int,
) -> list[str]:
    """Writes tensors one by one: one in memory at a time.

    Args:
      folder: where to.
      shapes: of the tensors, by name, in the order to write them.
      value_of: makes a tensor.
      dtype: to keep them in.
      max_file_bytes: a file gets no second tensor beyond this; above it in all, there are several files and an index.

    Returns:
      The names of the files.
    """
    sizes = {name: dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
    groups = _groups(sizes, max_file_bytes)
    if len(groups) == 1:
        _write_file(folder / WEIGHTS_FILE, shapes, value_of, dtype)
        return [WEIGHTS_FILE]
    files = {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}
    for file, group in files.items():
        _write_file(folder / file, {name: shapes[name] for name in group}, value_of, dtype)
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: file for file, group in files.items() for name in group},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX_FILE]


def _groups(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    value_of: Callable[[str], Float32[np.ndarray, "..."]],
    dtype: np.dtype,
) -> None:
    # transformers asks for the format in the metadata; "pt" is the layout of its own classes.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(_HEADER_LENGTH.pack(len(text)))
        file.write(text)
        for name in shapes:
            value = np.ascontiguousarray(value_of(name), dtype)
            file.write(value.view(np.uint8).reshape(-1).data)
