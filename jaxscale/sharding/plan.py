"""A ShardingPlan: for every leaf a spec and its reason; turned into shardings on a mesh."""

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# A batch is split over every axis but these: the devices of one `tensor` group compute parts of the same examples,
# and those of different stages the same examples at different times.
_AXES_WITHOUT_BATCH = ("stage", "tensor")


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The names of the axes, of more than one device, that the examples of a batch are split over."""
    return tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis not in _AXES_WITHOUT_BATCH)


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading dim over `batch_axes`, every other dim whole."""
    return NamedSharding(mesh, P(batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def row_sharded(mesh: Mesh) -> NamedSharding:
    """The leading dim over all devices of the mesh, its axes flattened in their order."""
    return NamedSharding(mesh, P(mesh.axis_names))
