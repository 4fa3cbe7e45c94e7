"""How a plan writes a spec: for every dim of an array the names of the mesh axes it is split over; their arithmetic."""

import math

from jax.sharding import PartitionSpec

from jaxscale.mesh import AXES, MeshSpec

DimAxes = tuple[str, ...]
Spec = tuple[DimAxes, ...]

# A batch is split over every axis but these: the devices of one `tensor` group compute parts of the same examples,
# and those of different stages the same examples at different times.
_AXES_WITHOUT_BATCH = ("stage", "tensor")
BATCH_AXES = tuple(axis for axis in AXES if axis not in _AXES_WITHOUT_BATCH)


def partition_spec(spec: Spec) -> PartitionSpec:
    """The spec in the form jax knows.

    >>> tuple(partition_spec(((), ("fsdp",), ())))
    (None, 'fsdp')
    """
    entries = [axes[0] if len(axes) == 1 else axes or None for axes in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def spec_text(spec: Spec) -> str:
    """A spec for people.

    >>> spec_text(((), ("fsdp",), ("tensor", "data")))
    '-, fsdp, tensor*data'
    """
    return ", ".join("*".join(axes) or "-" for axes in spec)


def num_parts(mesh: MeshSpec, axes: DimAxes) -> int:
    """How many parts a dim has that is split over `axes`."""
    return math.prod(mesh.sizes[axis] for axis in axes)


def legal_sizes(size: int) -> str:
    """The axis sizes, up to 1024, that divide a dim of `size`.

    >>> legal_sizes(12)
    '1, 2, 3, 4, 6, 12'
    """
    return ", ".join(str(n) for n in range(1, min(size, 1024) + 1) if size % n == 0)
