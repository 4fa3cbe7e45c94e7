"""From a loss, the shapes of its arguments and a mesh to a ShardingPlan: trace, choose, guard."""

import math
from collections.abc import Sequence
from typing import Any

import optax

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding import guard
from jaxscale.sharding.activations import StoredDims, activations_of
from jaxscale.sharding.choices import Choices, nothing_placed
from jaxscale.sharding.exchanges import exchanges_of, returns_of
from jaxscale.sharding.graph import Graph, Leaf
from jaxscale.sharding.islands import islands_of
from jaxscale.sharding.limits import DEFAULT_LIMITS, Limits
from jaxscale.sharding.pins import AddedRule, Pin, in_order, pinned
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import Spec, num_parts
from jaxscale.sharding.splits import splits_of
from jaxscale.sharding.trace import LossFunction, trace_step


def derive(
    loss: LossFunction,
    params: Any,
    batch: Any,
    mesh: MeshSpec,
    *,
    optimizer: optax.GradientTransformation | None = None,
    limits: Limits = DEFAULT_LIMITS,
    pins: Sequence[Pin] = (),
    rules: Sequence[AddedRule] = (),
) -> ShardingPlan:
    """Where every parameter, every leaf of the optimizer's state and the batch live on a mesh of the given spec.

    Derived from what the loss computes (its jaxpr); names of parameters play no part. Nothing is computed, no device
    is touched.

    Args:
      loss: a traceable function of (params, batch); what it returns does not matter, only how it computes it.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: a tree of the same; the leading dim of every leaf holds the examples, scalars (a key) are whole.
      mesh: with every size resolved.
      optimizer: what will update the parameters; None where nothing does.
      limits: what is small, and what is too much to copy.
      pins: what the user decides; rules decide the rest.
      rules: the user's own, each at its place among ours.

    Raises:
      UsageError: the mesh can't be used for this, `guard.check` says how; or a pin or a rule can't be followed.
    """
    graph = trace_step(loss, params, batch, optimizer=optimizer)
    plan = plan_of(graph, mesh, limits, pins=pins, rules=rules)
    guard.check(graph, plan)
    return plan


def plan_of(
    graph: Graph, mesh: MeshSpec, limits: Limits, *, pins: Sequence[Pin] = (), rules: Sequence[AddedRule] = ()
) -> ShardingPlan:
    """The plan that the rules make of a graph, before any guard has seen it."""
    choices: Choices = pinned(graph, mesh, nothing_placed(graph), pins)
    for rule in in_order(rules):
        choices = rule(graph, mesh, limits, choices)
    return plan_with(graph, mesh, limits, choices)


def plan_with(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> ShardingPlan:
    """The plan of a graph whose leaves are placed: what follows of that for the activations."""
    specs = [choice.spec for choice in choices]
    splits = splits_of(graph, mesh, specs)
    leaves = tuple(
        PlannedLeaf(
            role=leaf.role,
            path=leaf.path,
            shape=leaf.shape,
            dtype=leaf.dtype,
            spec=choice.spec,
            rules=choice.rules or ("whole",),
            reasons=choice.reasons or (("no rule splits it on this mesh" if leaf.shape else "a scalar"),),
            rejected=choice.rejected,
            layout=choice.layout,
            bytes_per_device=_bytes_per_device(leaf, mesh, choice.spec),
        )
        for leaf, choice in zip(graph.leaves, choices, strict=True)
    )
    return ShardingPlan(
        mesh=mesh,
        limits=limits,
        leaves=leaves,
        activations=activations_of(
            graph,
            mesh,
            specs,
            splits,
            _stored_dims(graph, choices),
            exchanges_of(graph, mesh, splits, limits),
            returns_of(graph, mesh, splits),
        ),
        not_understood=graph.not_understood,
        islands=islands_of(graph, mesh, specs, splits),
    )


def _stored_dims(graph: Graph, choices: Choices) -> StoredDims:
    found = [
        (leaf, choice, choice.layout.dim) for leaf, choice in zip(graph.leaves, choices, strict=True) if choice.layout
    ]
    return {
        leaf.dims[dim]: tuple(axis for axis in choice.spec[dim] if axis_of(axis) == "tensor")
        for leaf, choice, dim in found
        if leaf.role == "parameter"
    }


def _bytes_per_device(leaf: Leaf, mesh: MeshSpec, spec: Spec) -> int:
    parts = [num_parts(mesh, axes) for axes in spec]
    num_bytes_each = leaf.num_bytes // max(math.prod(leaf.shape), 1)
    return num_bytes_each * math.prod(-(-size // n) for size, n in zip(leaf.shape, parts, strict=True))
