"""The shapes that batches have: the buckets that a step is compiled for, and whether a mesh can share them out."""

import math
from collections.abc import Mapping
from typing import Any

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.specs import BATCH_AXES

# Arrays or `jax.ShapeDtypeStruct`, by name.
BatchShapes = Mapping[str, Any]
# Name, shape and dtype of every leaf, by name: what a compiled step is for.
Bucket = tuple[tuple[str, tuple[int, ...], str], ...]


def bucket_of(batch: BatchShapes) -> Bucket:
    """The bucket that a batch belongs to.

    >>> import numpy as np
    >>> bucket_of({"b": np.zeros((4, 2), np.int32), "a": np.zeros(4, bool)})
    (('a', (4,), 'bool'), ('b', (4, 2), 'int32'))
    """
    return tuple((name, tuple(leaf.shape), str(leaf.dtype)) for name, leaf in sorted(batch.items()))


def bucket_text(bucket: Bucket) -> str:
    """A bucket for people.

    >>> bucket_text((("a", (4,), "bool"), ("b", (4, 2), "int32")))
    'a [4] bool, b [4 2] int32'
    """
    return ", ".join(f"{name} [{' '.join(map(str, shape))}] {dtype}" for name, shape, dtype in bucket)


def check_divides(global_batch_size: int, grad_accum: int, mesh: MeshSpec) -> None:
    """Refuses a batch whose microbatches can't be shared out to the mesh.

    Args:
      global_batch_size: examples per step.
      grad_accum: microbatches per step.
      mesh: with every size resolved.

    Raises:
      UsageError: with the nearest sizes that would do.

    >>> check_divides(16, 2, MeshSpec(data=4))
    """
    axes = [axis for axis in BATCH_AXES if mesh.sizes[axis] > 1]
    ways = math.prod(mesh.sizes[axis] for axis in axes) * grad_accum
    if global_batch_size % ways:
        product = "*".join([*axes, "grad_accum"] if grad_accum > 1 else axes)
        lower = global_batch_size // ways * ways
        near = " or ".join(str(size) for size in (lower, lower + ways) if size)
        raise UsageError(
            f"global_batch_size={global_batch_size} must be divisible by {product}={ways}; use {near}, "
            "or a mesh with more devices on tensor, over which no examples are split"
        )
