"""Refusals, before anything compiles: examples that don't divide, an axis that nothing uses, a silent copy."""

import collections

from jaxscale.errors import UsageError
from jaxscale.mesh import AXES, MeshSpec, axis_of
from jaxscale.sharding.graph import Graph
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import legal_sizes, num_parts

_MAX_SHOWN = 5


def check(graph: Graph, plan: ShardingPlan) -> None:
    """Refuses a plan that would waste devices or memory without a word.

    Args:
      graph: what the plan was made from.
      plan: the plan.

    Raises:
      UsageError: every refusal, with the leaf, the bytes, the reason and what would do.
    """
    refusals = [*_indivisible_batches(plan), *_unused_axes(plan), *_copies(graph, plan)]
    if refusals:
        shown = refusals[:_MAX_SHOWN]
        more = [f"and {len(refusals) - len(shown)} more"] if len(refusals) > len(shown) else []
        raise UsageError(f"mesh {plan.mesh} does not suit this computation:\n  " + "\n  ".join([*shown, *more]))


def _indivisible_batches(plan: ShardingPlan) -> list[str]:
    refusals: dict[str, list[str]] = collections.defaultdict(list)
    for leaf in plan.leaves:
        parts = num_parts(plan.mesh, leaf.spec[0]) if leaf.role == "batch" and leaf.shape else 1
        if parts > 1 and leaf.shape[0] % parts:
            lower = leaf.shape[0] // parts * parts
            use = f"{lower} or {lower + parts}" if lower else str(parts)
            what = f"{leaf.shape[0]} examples must be divisible by {'*'.join(leaf.spec[0])}={parts}; use {use}"
            refusals[what].append(leaf.path)
    return [f"{what} (batch {', '.join(paths)})" for what, paths in refusals.items()]


def _unused_axes(plan: ShardingPlan) -> list[str]:
    used = {axis_of(entry) for leaf in plan.leaves for axes in leaf.spec for entry in axes}
    idle = [axis for axis in AXES if plan.mesh.sizes[axis] > 1 and axis not in used]
    return [f"nothing is split over {axis}={plan.mesh.sizes[axis]}: {_why_idle(plan, axis)}" for axis in idle]


def _why_idle(plan: ShardingPlan, axis: str) -> str:
    if axis == "stage":
        return "there is no rule that makes pipeline stages; use stage=1"
    said: dict[str, list[str]] = collections.defaultdict(list)
    for leaf in plan.leaves:
        for reason in leaf.rejected:
            if f"over {axis}=" in reason and leaf.role == "parameter":
                said[reason].append(leaf.path)
    if not said:
        return f"no dim is of the kind that {axis} splits; use {axis}=1"
    shown = list(said.items())[:_MAX_SHOWN]
    return "; ".join(f"{paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}: {why}" for why, paths in shown)


def _copies(graph: Graph, plan: ShardingPlan) -> list[str]:
    budget = plan.limits.replicated_leaf_bytes
    refusals = []
    for leaf in plan.leaves:
        idle = _axes_without(plan.mesh, leaf)
        if leaf.role == "batch" or leaf.bytes_per_device <= budget or not idle:
            continue
        sizes = "; ".join(f"dim {i} ({size}): {legal_sizes(size)}" for i, size in enumerate(leaf.shape))
        why = "; ".join(leaf.rejected) or leaf.reasons[-1]
        refusals.append(
            f"{leaf.role} {leaf.path} {leaf.shape}: {leaf.bytes_per_device} bytes would be copied over "
            f"{', '.join(idle)}, above replicated_leaf_bytes={budget}. Why: {why}. Legal sizes: {sizes}"
        )
    return refusals


def _axes_without(mesh: MeshSpec, leaf: PlannedLeaf) -> list[str]:
    """The axes that could hold parts of the leaf, and hold copies."""
    used = {axis_of(entry) for axes in leaf.spec for entry in axes}
    idle = [axis for axis in ("fsdp", "tensor") if mesh.sizes[axis] > 1 and axis not in used]
    # Either axis alone is enough, but a leaf left out by `fsdp` is copied where all its like are not.
    return idle if "fsdp" in idle or not used else []
