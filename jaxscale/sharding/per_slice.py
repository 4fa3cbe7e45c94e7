"""One part of a batch for every slice: what is computed of each stays on its slice until it is added up.

A gradient that is summed over a batch is reduced over all of the batch's axes as soon as a matmul has made it. With a
leading dim for the slices, split over them, it is one gradient for each slice: nothing crosses the data-centre network
before `added_up`, however many microbatches were accumulated.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.specs import DimAxes, Spec

AXIS = "slice"


def part_plan(plan: ShardingPlan) -> ShardingPlan:
    """The plan of what one slice computes, of its own part of the batch: everything as in `plan`, but for the slices.

    Its results are pinned as those of the whole are, because the program of a part is that of the whole on fewer
    examples.

    Args:
      plan: of the whole, on a mesh of several slices.

    Returns:
      A plan for the same mesh that names the axis `slice` nowhere.
    """
    leaves = tuple(
        dataclasses.replace(leaf, shape=_part(plan, leaf.shape, leaf.spec), spec=_inside(leaf.spec))
        for leaf in plan.leaves
    )
    activations = tuple(
        dataclasses.replace(
            made,
            shape=_part(plan, made.shape, made.spec),
            spec=_inside(made.spec),
            through=tuple(map(_inside, made.through)),
        )
        for made in plan.activations
    )
    islands = tuple(
        dataclasses.replace(
            island,
            axes={letter: inside for letter, axes in island.axes.items() if (inside := _without_slice(axes))},
            stored=tuple(map(_inside, island.stored)),
        )
        for island in plan.islands
    )
    return dataclasses.replace(plan, leaves=leaves, activations=activations, islands=islands)


def cut(batch: Any, num_slices: int, shardings: Any) -> Any:
    """Leaves [B ...] as [slices, B / slices, ...], part i the run of examples that slice i has; nothing moves.

    Args:
      batch: a tree of arrays.
      num_slices: of the mesh.
      shardings: of a part, a tree like the batch; they do not name the axis `slice`.
    """
    parts = jax.tree.map(lambda x: x.reshape(num_slices, x.shape[0] // num_slices, *x.shape[1:]), batch)
    return kept_apart(parts, shardings)


def for_each(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of one part, of all parts at once: arguments and outputs have a leading dim for the slices.

    Args:
      function: whose pinned values name the axis `slice` nowhere.
    """
    return jax.vmap(function, spmd_axis_name=AXIS)


def kept_apart(parts: Any, shardings: Any) -> Any:
    """Leaves [slices ...], each slice with its own.

    Args:
      parts: a tree of arrays.
      shardings: of what one slice has, a tree like the parts; they do not name the axis `slice`.
    """
    return jax.tree.map(_split, parts, shardings)


def added_up(parts: Any) -> Any:
    """The sum over the leading dim of every leaf: what crosses between the slices."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)


def _split(x: jax.Array, inside: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(inside.mesh, P(AXIS, *inside.spec)))


def _inside(spec: Spec) -> Spec:
    return tuple(map(_without_slice, spec))


def _without_slice(axes: DimAxes) -> DimAxes:
    return tuple(axis for axis in axes if axis != AXIS)


def _part(plan: ShardingPlan, shape: tuple[int, ...], spec: Spec) -> tuple[int, ...]:
    """The shape of what one slice has."""
    return tuple(size // plan.mesh.slice if AXIS in axes else size for size, axes in zip(shape, spec, strict=True))
