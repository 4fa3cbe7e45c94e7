"""The state of a checkpoint through Orbax: its engine and barriers, our checksummed arrays.

Orbax calls `TreeHandler` as it would its own PyTreeHandler, whose saving options offer no checksumming codec.
"""

import dataclasses
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from jaxscale.store import arrays
from jaxscale.store.failpoints import failpoint

STATE = "state"
METADATA = "metadata"

_COPY_BYTES = 16 << 20
_NUM_COPY_THREADS = 4


class TreeHandler:
    """Writes and reads a tree of arrays with `jaxscale.store.arrays`; Orbax's CheckpointableHandler protocol."""

    async def save(self, directory: Any, checkpointable: dict[str, arrays.Chunked]) -> Awaitable[None]:
        """Returns the write, which Orbax awaits in the background; `checkpointable` is what `on_host` gave."""
        return self._write(directory, checkpointable)

    async def _write(self, directory: Any, chunked: dict[str, arrays.Chunked]) -> None:
        path = Path(await directory.await_creation())
        failpoint("checkpoints.before_write")
        arrays.write_named(path, chunked)
        failpoint("checkpoints.after_write")

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Reads the tree: leaves with a sharding onto their mesh, the others into numpy arrays."""
        return self._read(Path(directory), abstract_checkpointable)

    async def _read(self, directory: Path, abstract: Any) -> Any:
        if abstract is None:
            return arrays.read_tree(directory)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        unsharded = any(leaf.sharding is None for leaf in jax.tree.leaves(abstract))
        return arrays.read_tree(directory, abstract, None if unsharded else shardings)

    async def metadata(self, directory: Any) -> Any:
        """Shapes and dtypes of the leaves, in nested dicts."""
        handles = {name: arrays.open(directory, name) for name in arrays.array_names(directory)}
        return arrays.nest({name: jax.ShapeDtypeStruct(h.shape, h.dtype) for name, h in handles.items()})

    def is_handleable(self, checkpointable: Any) -> bool:
        """Any tree will do; the writer refuses leaves that are not arrays."""
        return True

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Any tree will do."""
        return True


def orbax_context() -> Any:
    """The Orbax context under which states go through `TreeHandler`."""
    registry = ocp.handlers.local_registry(include_global_registry=False)
    registry.add(TreeHandler, checkpointable_name=STATE)
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=METADATA)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def on_host(tree: Any, *, copy: bool) -> dict[str, arrays.Chunked]:
    """The part of each leaf that this process writes, by name, on the host.

    Args:
      tree: arrays of jax (sharded in any way) or numpy, and numbers.
      copy: whether the parts are in memory of their own, so that the caller may overwrite the tree; otherwise they
        share the leaves' memory where they can.

    Returns:
      The leaves by name, ready for `arrays.write_named`.
    """
    failpoint("checkpoints.before_host_copy")
    leaves = arrays.named_leaves(tree)
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            arrays.refuse_keys(leaf)
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    shard.data.copy_to_host_async()
    if not copy:
        return {name: arrays.chunk(leaf) for name, leaf in leaves.items()}
    copies: list[tuple[np.ndarray, np.ndarray]] = []
    copied = {name: _plan_copy(leaf, copies) for name, leaf in leaves.items()}
    with ThreadPoolExecutor(_NUM_COPY_THREADS) as pool:
        list(pool.map(lambda pair: np.copyto(*pair), copies))
    return copied


def _plan_copy(leaf: Any, copies: list[tuple[np.ndarray, np.ndarray]]) -> arrays.Chunked:
    """Allocates a leaf's copy and adds to `copies` what has to be copied where."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        held = arrays.chunk(leaf)
        owned = tuple((index, np.empty_like(part)) for index, part in held.parts)
        for (_, target), (_, source) in zip(owned, held.parts, strict=True):
            _split_copy(target, source, copies)
        return dataclasses.replace(held, parts=owned)
    if isinstance(leaf, jax.Array):
        sources = [(s.index, np.asarray(s.data)) for s in leaf.addressable_shards if s.replica_id == 0]
        whole = np.empty(leaf.shape, leaf.dtype)
    else:
        sources = [((), np.asarray(leaf))]
        whole = np.empty_like(sources[0][1], order="C")
    for index, source in sources:
        _split_copy(whole[(*index, ...)], source, copies)
    return arrays.chunk(whole)


def _split_copy(target: np.ndarray, source: np.ndarray, copies: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Cuts a copy along the first dim, so that several threads share a large one."""
    if source.nbytes <= _COPY_BYTES or source.ndim == 0:
        copies.append((target, source))
        return
    rows = max(1, len(source) * _COPY_BYTES // source.nbytes)
    for start in range(0, len(source), rows):
        copies.append((target[start : start + rows], source[start : start + rows]))
