"""The meshes that a topology's devices can make, and the smaller topologies of its chip."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from jaxscale.cost.chips import Topology
from jaxscale.mesh import AXES, MeshSpec

# Of three dims, the one shape that is flat.
_PLANE = (1, 2, 2)


def meshes_of(topology: Topology, axes: Sequence[str]) -> Iterator[MeshSpec]:
    """Every mesh of all devices of a topology over the given axes; `slice` has the topology's slices.

    Args:
      topology: whose devices.
      axes: names of `jaxscale.mesh.AXES` without `slice`; all others have one device.

    >>> [str(mesh) for mesh in meshes_of(Topology.parse("v5e:2x2"), ("fsdp", "tensor"))]
    ['tensor=4', 'fsdp=2,tensor=2', 'fsdp=4']
    """
    ordered = [axis for axis in AXES if axis in axes]
    num_devices = topology.num_devices // topology.num_slices
    for sizes in _ordered_products(num_devices, len(ordered)):
        yield MeshSpec(slice=topology.num_slices, **dict(zip(ordered, sizes, strict=True)))


def smaller_topologies(topology: Topology) -> Iterator[Topology]:
    """The topologies of one slice of the same chip that have fewer chips, smallest first.

    A torus has the shapes that are sold: powers of two in every dim, no dim more than twice another; of three dims,
    also 2x2x1. Behind a switch: any power of two.

    References: Google Cloud, TPU v5e, "Configurations", https://docs.cloud.google.com/tpu/docs/v5e; TPU v5p,
    "Configurations", https://docs.cloud.google.com/tpu/docs/v5p

    >>> [str(smaller) for smaller in smaller_topologies(Topology.parse("v5e:4x8"))]
    ['v5e:1x1', 'v5e:2x2', 'v5e:2x4', 'v5e:4x4']
    """
    chip, num_chips = topology.chip, math.prod(topology.shape) * topology.num_slices
    powers = [2**n for n in range(num_chips.bit_length())]
    shapes: list[tuple[int, ...]] = [(size,) for size in powers]
    if chip.torus_dims is not None:
        tori = itertools.combinations_with_replacement(powers, chip.torus_dims)
        shapes = [shape for shape in tori if _is_sold(shape)]
    largest = num_chips - 1 if chip.domain_chips is None else min(num_chips - 1, chip.domain_chips)
    for shape in sorted(shapes, key=lambda shape: (math.prod(shape), shape)):
        if math.prod(shape) <= largest:
            yield dataclasses.replace(topology, shape=_as_written(shape), num_slices=1)


def _is_sold(shape: tuple[int, ...]) -> bool:
    """Of a shape in ascending order."""
    if len(shape) == len(_PLANE) and shape[0] == 1:
        return shape == _PLANE
    return shape[-1] <= 2 * shape[0] and shape != (1, 2)


def _as_written(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] + shape[:1] if shape == _PLANE else shape


def _ordered_products(number: int, num_factors: int) -> Iterator[tuple[int, ...]]:
    """Every way of writing a number as an ordered product."""
    if num_factors == 1:
        yield (number,)
        return
    for first in (size for size in range(1, number + 1) if number % size == 0):
        for rest in _ordered_products(number // first, num_factors - 1):
            yield (first, *rest)
