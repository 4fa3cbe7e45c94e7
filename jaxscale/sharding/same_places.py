"""The plan of a loss on arguments of other shapes, with every array where another plan has it already."""

import dataclasses
from typing import Any

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding import guard
from jaxscale.sharding.choices import Choice
from jaxscale.sharding.derive import plan_with
from jaxscale.sharding.graph import Leaf
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import legal_sizes, num_parts
from jaxscale.sharding.trace import LossFunction, trace_step


def derive_like(plan: ShardingPlan, loss: LossFunction, params: Any, batch: Any) -> ShardingPlan:
    """The plan for a batch of other lengths: parameters and batch as in `plan`, activations by this program.

    Training has one set of parameters and a program for each shape of its batches.

    Args:
      plan: what is there; derived from the same loss and parameters.
      loss: a traceable function of (params, batch).
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: a tree of the same, with the leaves of the batch that `plan` was derived from.

    Raises:
      UsageError: a leaf does not divide as `plan` splits it, or was not planned; or the mesh does not suit the program
        with its arrays there, see `guard.check`.
    """
    graph = trace_step(loss, params, batch)
    planned = {(leaf.role, leaf.path): leaf for leaf in plan.leaves}
    choices = tuple(_choice(plan.mesh, leaf, planned.get((leaf.role, leaf.path))) for leaf in graph.leaves)
    made = plan_with(graph, plan.mesh, plan.limits, choices)
    guard.check(graph, made)
    return made


def _choice(mesh: MeshSpec, leaf: Leaf, planned: PlannedLeaf | None) -> Choice:
    """What the plan has chosen, for a leaf of this shape."""
    if planned is None or len(planned.shape) != len(leaf.shape):
        raise UsageError(
            f"{leaf.role} {leaf.path} of shape {leaf.shape} was not planned, or not with as many dims; "
            "derive the plan from arguments of the same structure"
        )
    for dim, (size, axes) in enumerate(zip(leaf.shape, planned.spec, strict=True)):
        parts = num_parts(mesh, axes)
        if size % parts:
            raise UsageError(
                f"{leaf.role} {leaf.path} {leaf.shape}: dim {dim} ({size}) is split over {'*'.join(axes)}={parts} and "
                f"does not divide; use a size that {parts} divides, or a part of the axis that divides {size}: "
                f"{legal_sizes(size)}"
            )
    return Choice(
        spec=planned.spec,
        rules=planned.rules,
        reasons=planned.reasons,
        rejected=planned.rejected,
        layout=None if planned.layout is None else dataclasses.replace(planned.layout, logical_shape=leaf.shape),
    )
