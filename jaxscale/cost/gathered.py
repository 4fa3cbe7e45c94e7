"""Weights that are gathered once per step, for all its microbatches: what the copies take, and what they move."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxscale.cost.rings import ring_bytes
from jaxscale.cost.traffic import Collective, Traffic
from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.gathered import AXIS
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import num_parts

# By a parameter's position in a plan: the dtype that it is gathered in.
Gathered = Mapping[int, Any]


def copy_bytes(plan: ShardingPlan, gathered: Gathered) -> dict[int, int]:
    """The bytes of each copy on one device, by the parameter's position.

    Args:
      plan: of the step.
      gathered: parameters.
    """
    found = {}
    for position, dtype in gathered.items():
        leaf = plan.leaves[position]
        own = jnp.dtype(leaf.dtype).itemsize
        found[position] = leaf.bytes_per_device * _ways(leaf, plan.mesh) * dtype.itemsize // own
    return found


def gathering(plan: ShardingPlan, gathered: Gathered) -> Traffic:
    """What making the copies moves.

    Args:
      plan: of the step.
      gathered: parameters.
    """
    made = [
        Collective(
            kind="all_gather",
            axes=(AXIS,),
            network="ici",
            num_runs=1,
            num_bytes=num_bytes,
            bytes_moved=ring_bytes("all_gather", num_bytes, _ways(plan.leaves[position], plan.mesh)),
            source="",
        )
        for position, num_bytes in copy_bytes(plan, gathered).items()
    ]
    return Traffic(collectives=tuple(made))


def _ways(leaf: PlannedLeaf, mesh: MeshSpec) -> int:
    return num_parts(mesh, [axis for axes in leaf.spec for axis in axes if axis_of(axis) == AXIS])
