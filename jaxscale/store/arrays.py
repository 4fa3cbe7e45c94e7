"""Arrays on disk: zarr v3 with a checksum in every chunk, written and read through TensorStore.

The format is written down in docs/formats/arrays.md. Legend: N rows of an array, E the rest of its shape.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import jax
import numpy as np
import tensorstore as ts
from jaxtyping import Shaped

from jaxscale.errors import DataError, VerificationError
from jaxscale.store.chunks import CHUNK_BYTES, Array, Chunked, Index, chunk
from jaxscale.store.failpoints import failpoint

_CRC_BYTES = 4
_METADATA = "zarr.json"
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in the text of a TensorStore error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayHandle:
    """An array that stays on disk; indexing reads what is asked, chunk by chunk, each checked.

    Attributes:
      path: the array's directory.
      shape: its shape.
      dtype: its dtype, bfloat16 and its like as ml_dtypes'.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    _store: Any = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Shaped[np.ndarray, "..."]:
        """Reads a part, e.g. `handle[a:b]`: rows a to b, in memory. Bounds are numpy's, steps are positive.

        Raises:
          VerificationError: a chunk is missing or damaged; the message names its file.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[0])
            index = slice(start, max(start, stop), step)
        return _wait(self._store[index].read(), self.path)

    def start(self, index: Index) -> Any:
        """Starts to read a part; returns a TensorStore future."""
        return self._store[index].read()


def write(directory: str | Path, name: str, value: Array) -> None:
    """Writes one array below `directory`.

    Args:
      directory: usually a draft's path.
      name: `/` between its parts.
      value: any shape; a jax array may be sharded in any way, every process writes what it holds.

    Raises:
      DataError: the name or the dtype can't be written.
      OSError: the disk refuses.
    """
    write_named(directory, {name: value})


def write_tree(directory: str | Path, tree: Any) -> None:
    """Writes every leaf of a tree of arrays as `write` does, all of them at once.

    Args:
      directory: usually a draft's path.
      tree: nested dicts, lists, tuples or named tuples of arrays and numbers.
    """
    write_named(directory, named_leaves(tree))


def write_named(directory: str | Path, values: Mapping[str, Array | Chunked]) -> None:
    """Writes several arrays by name; see `write`."""
    directory = Path(directory)
    with contextlib.ExitStack() as in_flight:  # a failure leaves nothing behind that still writes
        writes = []
        for name, value in values.items():
            failpoint("arrays.before_write")
            chunked = value if isinstance(value, Chunked) else chunk(value)
            store = _create(_array_path(directory, name), chunked)
            for index, part in chunked.parts:
                if part.size:
                    future = store[index].write(part, can_reference_source_data_indefinitely=True)
                    in_flight.callback(future.exception)
                    writes.append((directory / name, future))
        for path, future in writes:
            if isinstance(error := future.exception(), ValueError):
                raise _disk_error(error, path) from error
            future.result()
            failpoint("arrays.after_write")


def write_streamed(
    directory: str | Path, name: str, parts: Iterable[tuple[Index, np.ndarray]], *, like: Chunked
) -> None:
    """Writes one array part by part: the next is asked for once the last is on disk, so that one is in memory.

    Args:
      directory: usually a draft's path.
      name: `/` between its parts.
      parts: index in the whole array, and the values there; a part fills the chunks that it meets.
      like: the array's shape, dtype and grid; its own parts are not looked at.

    Raises:
      DataError: the name or the dtype can't be written.
      OSError: the disk refuses.
    """
    path = _array_path(Path(directory), name)
    failpoint("arrays.before_write")
    store = _create(path, like)
    for index, part in parts:
        _wait(store[index].write(part, can_reference_source_data_indefinitely=True), path)
    failpoint("arrays.after_write")


def read(directory: str | Path, name: str) -> Shaped[np.ndarray, "..."]:
    """Reads one array whole.

    Raises:
      DataError: there is no such array.
      VerificationError: a chunk is missing or damaged; the message names its file.
    """
    handle = open(directory, name)
    return _wait(handle.start(()), handle.path)


def read_into(directory: str | Path, name: str, at: tuple[int, ...], values: Shaped[np.ndarray, "..."]) -> None:
    """Reads a part of an array into memory that is there already, a few rows at a time.

    Args:
      directory: where the array is.
      name: its name.
      at: which part: an index for each of the array's first dims.
      values: where to; of the shape of the other dims, of which there is one at least.

    Raises:
      DataError: there is no such array.
      VerificationError: a chunk is missing or damaged; the message names its file.
    """
    handle = open(directory, name)
    num_rows = max(1, CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), num_rows):
        rows = slice(start, min(start + num_rows, len(values)))
        values[rows] = handle[(*at, rows)]


def open(directory: str | Path, name: str) -> ArrayHandle:
    """Opens one array to read parts of it.

    Raises:
      DataError: there is no such array.
      VerificationError: its description is damaged.
    """
    path = _array_path(Path(directory), name)
    if not (path / _METADATA).is_file():
        raise DataError(f"there is no array {name!r} in {directory}")
    try:
        store = ts.open(_spec(path), open=True, read=True, context=_context()).result()
    except ValueError as error:
        raise VerificationError(f"{path / _METADATA} is damaged: {error}") from None
    return ArrayHandle(path=path, shape=tuple(store.shape), dtype=store.dtype.numpy_dtype, _store=store)


def read_sharded(directory: str | Path, name: str, sharding: jax.sharding.Sharding) -> Shaped[jax.Array, "..."]:
    """Reads one array straight onto a mesh: each process reads the parts its devices hold, each part once.

    Args:
      directory: where the array is.
      name: its name.
      sharding: any, of any mesh, whatever the array was written from.

    Raises:
      DataError: there is no such array.
      VerificationError: a chunk is missing or damaged; the message names its file.
    """
    return _start_sharded(open(directory, name), sharding)()


def read_tree(directory: str | Path, abstract: Any = None, shardings: Any = None) -> Any:
    """Reads a tree that `write_tree` wrote.

    Args:
      directory: where it was written.
      abstract: a tree of the same structure whose leaves have `shape` and `dtype`, which must be those on
        disk; None gives nested dicts of everything there is.
      shardings: a tree of shardings like `abstract`, or one for all; None gives numpy arrays.

    Raises:
      DataError: a leaf is missing, or has another shape or dtype than `abstract` says.
      VerificationError: a chunk is missing or damaged; the message names its file.
    """
    directory = Path(directory)
    if abstract is None:
        leaves = {name: open(directory, name) for name in array_names(directory)}
        return nest(_read_all(leaves, dict.fromkeys(leaves, shardings)))
    handles = {name: open_as(directory, name, leaf) for name, leaf in named_leaves(abstract).items()}
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        by_name = dict.fromkeys(handles, shardings)
    else:
        by_name = named_leaves(jax.tree.map(lambda _, sharding: sharding, abstract, shardings))
    return jax.tree.unflatten(jax.tree.structure(abstract), list(_read_all(handles, by_name).values()))


def open_as(directory: Path, name: str, leaf: Any) -> ArrayHandle:
    """Opens an array that must have the shape and dtype of `leaf`; raises DataError where it has not."""
    handle = open(directory, name)
    shape, dtype = np.shape(leaf), np.dtype(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
    if handle.shape != shape or handle.dtype != dtype:
        raise DataError(
            f"{directory / name} holds {handle.dtype}{list(handle.shape)}, expected {dtype}{list(shape)}; "
            "it was written by another configuration"
        )
    return handle


def array_names(directory: str | Path) -> list[str]:
    """The names of all arrays below `directory`, sorted."""
    directory = Path(directory)
    return sorted(file.parent.relative_to(directory).as_posix() for file in directory.rglob(_METADATA))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path.

    >>> named_leaves({"a": {"b": 1}, "c": (2, 3)})
    {'a/b': 1, 'c/0': 2, 'c/1': 3}

    Raises:
      DataError: the tree is a bare leaf, or two leaves have one path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves) or "" in named:
        raise DataError(
            "a tree of arrays needs a different, non-empty path for each leaf; put a bare array into a dict"
        )
    return named


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts out of values by path.

    >>> nest({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    nested: dict[str, Any] = {}
    for name, value in named.items():
        *parents, last = name.split("/")
        node = nested
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return nested


def _read_all(handles: dict[str, ArrayHandle], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Starts all reads, then waits for each."""
    finish: dict[str, Callable[[], Any]] = {}
    for name, handle in handles.items():
        if shardings[name] is None:
            finish[name] = functools.partial(_wait, handle.start(()), handle.path)
        else:
            finish[name] = _start_sharded(handle, shardings[name])
    return {name: result() for name, result in finish.items()}


def _start_sharded(handle: ArrayHandle, sharding: jax.sharding.Sharding) -> Callable[[], jax.Array]:
    """Starts to read this process's parts; returns the function that waits and makes the jax array."""
    if jax.dtypes.canonicalize_dtype(handle.dtype) != handle.dtype:
        raise DataError(
            f"{handle.path} holds {handle.dtype}, which jax would truncate while jax_enable_x64 is off; "
            "read it without a sharding, or save a 32-bit array"
        )
    if sharding.is_fully_addressable:  # one read of the whole, or a chunk would be read for every shard that it meets
        whole = handle.start(())

        def cut() -> jax.Array:
            host = _wait(whole, handle.path)
            return jax.make_array_from_callback(handle.shape, sharding, lambda index: host[index], dtype=handle.dtype)

        return cut
    indices = [index or () for index in sharding.addressable_devices_indices_map(handle.shape).values()]
    parts = {key: handle.start(index) for key, index in {_key(i, handle.shape): i for i in indices}.items()}

    def join() -> jax.Array:
        host = {key: _wait(future, handle.path) for key, future in parts.items()}
        return jax.make_array_from_callback(
            handle.shape, sharding, lambda index: host[_key(index or (), handle.shape)], dtype=handle.dtype
        )

    return join


def _key(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(part.indices(size) for part, size in zip(index, shape, strict=True))


def _array_path(directory: Path, name: str) -> Path:
    parts = name.split("/")
    if not all(part and part.isprintable() and part not in (".", "..", _METADATA) for part in parts):
        raise DataError(f"{name!r} can't be the name of an array: its parts must be printable names, with / between")
    return directory.joinpath(*parts)


@functools.cache
def _context() -> Any:
    # Nobody else writes a draft, so no lock files; the commit fsyncs everything itself; nothing is read twice.
    return ts.Context(
        {"file_io_sync": False, "file_io_locking": {"mode": "none"}, "cache_pool": {"total_bytes_limit": 0}}
    )


def _spec(path: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path.absolute()}/"},
        "fill_missing_data_reads": False,
        "store_data_equal_to_fill_value": True,
    }


def _create(path: Path, chunked: Chunked) -> Any:
    try:
        data_type = ts.dtype(chunked.dtype).name
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: an array of {chunked.dtype} can't be written ({error})") from None
    endian = {"configuration": {"endian": "little"}} if chunked.dtype.itemsize > 1 else {}
    metadata = {
        "shape": list(chunked.shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunked.chunk_shape)}},
        "codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
    }
    spec = _spec(path) | {"metadata": metadata}
    try:
        return ts.open(spec, open=True, create=True, context=_context()).result()
    except ValueError as error:
        raise _disk_error(error, path) from error


def _wait(future: Any, path: Path) -> Any:
    try:
        return future.result()
    except ValueError as error:
        damaged = _damaged_files(path)
        if damaged:
            raise VerificationError("\n  ".join(["an array is damaged; restore it from a copy:", *damaged])) from None
        raise _disk_error(error, path) from error


def _disk_error(error: ValueError, path: Path) -> OSError:
    number = _OS_ERROR.search(str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, f"{os.strerror(code)}: TensorStore says {error}", str(path))


def _damaged_files(path: Path) -> list[str]:
    """The files of an array that are missing, or whose bytes do not agree with the checksum at their end."""
    metadata = json.loads((path / _METADATA).read_bytes())
    grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [math.ceil(size / part) for size, part in zip(metadata["shape"], grid, strict=True)]
    damaged = []
    for position in np.ndindex(*counts):
        file = path.joinpath("c", *map(str, position))
        if not file.is_file():
            damaged.append(f"{file} is missing")
            continue
        content = file.read_bytes()
        if google_crc32c.value(content[:-_CRC_BYTES]).to_bytes(_CRC_BYTES, "little") != content[-_CRC_BYTES:]:
            damaged.append(f"{file} does not agree with its checksum")
    return damaged
