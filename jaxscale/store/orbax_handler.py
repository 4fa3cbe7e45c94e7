"""The state of a checkpoint through Orbax: its engine and barriers, our checksummed arrays.

Orbax calls `TreeHandler` as it would its own PyTreeHandler, whose saving options offer no checksumming codec.
"""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from jaxscale.store import arrays
from jaxscale.store.chunks import Chunked
from jaxscale.store.failpoints import failpoint
from jaxscale.store.processes import meet

STATE = "state"
METADATA = "metadata"


class TreeHandler:
    """Writes and reads a tree of arrays with `jaxscale.store.arrays`; Orbax's CheckpointableHandler protocol."""

    async def save(self, directory: Any, checkpointable: dict[str, Chunked]) -> Awaitable[None]:
        """Returns the write, which Orbax awaits in the background; `checkpointable` is what a HostCopier gave."""
        return self._write(directory, checkpointable)

    async def _write(self, directory: Any, chunked: dict[str, Chunked]) -> None:
        path = Path(await directory.await_creation())
        failpoint("checkpoints.before_write")
        arrays.write_named(path, chunked)
        failpoint("checkpoints.after_write")
        # Orbax gives the directory its final name once the first process has written; that all have is ours to say.
        await meet("arrays")

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
