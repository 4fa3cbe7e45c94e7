"""Refusals, before anything compiles: what does not divide, an idle axis, a silent copy, work done more than once."""

import collections
import dataclasses
import itertools

from jaxscale.errors import UsageError
from jaxscale.mesh import AXES, MeshSpec, axis_of
from jaxscale.sharding.exchanges import exchanges_of
from jaxscale.sharding.graph import Graph
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from jaxscale.sharding.specs import legal_sizes, num_parts, overlap, spec_text
from jaxscale.sharding.splits import splits_of
from jaxscale.sharding.tensor_rules import SHARED_HEADS
from jaxscale.sharding.work import Work, flops_ratio, work_of

_MAX_SHOWN = 5
_NO_LINE = "a line jax does not know"


def check(graph: Graph, plan: ShardingPlan) -> None:
    """Refuses a plan that would waste devices or memory without a word.

    Args:
      graph: what the plan was made from.
      plan: the plan.

    Raises:
      UsageError: every refusal, with the leaf, the bytes, the reason and what would do.
    """
    refusals = [
        *_indivisible_dims(plan),
        *_axes_twice(plan),
        *_unused_axes(plan),
        *_copies(graph, plan),
        *_constants(graph, plan),
        *_constraints(graph),
        *_repeated_work(graph, plan),
    ]
    if refusals:
        shown = refusals[:_MAX_SHOWN]
        more = [f"and {len(refusals) - len(shown)} more"] if len(refusals) > len(shown) else []
        raise UsageError(f"mesh {plan.mesh} does not suit this computation:\n  " + "\n  ".join([*shown, *more]))


def _indivisible_dims(plan: ShardingPlan) -> list[str]:
    refusals = _indivisible_batches(plan)
    arrays = [(f"{leaf.role} {leaf.path}", leaf.shape, leaf.spec) for leaf in plan.leaves if leaf.role != "batch"]
    arrays += [(f"activation of equation {a.address}", a.shape, a.spec) for a in plan.activations]
    for name, shape, spec in arrays:
        for i, (size, axes) in enumerate(zip(shape, spec, strict=True)):
            parts = num_parts(plan.mesh, axes)
            if size % parts:
                refusals.append(
                    f"{name} {shape}: dim {i} ({size}) over {'*'.join(axes)}={parts} does not divide; "
                    f"sizes that do: {legal_sizes(size)}"
                )
    return refusals


def _axes_twice(plan: ShardingPlan) -> list[str]:
    refusals = []
    for leaf in plan.leaves:
        entries = [entry for axes in leaf.spec for entry in axes]
        for left, right in itertools.combinations(entries, 2):
            if overlap(plan.mesh, left, right):
                refusals.append(
                    f"{leaf.role} {leaf.path} {leaf.shape} over {spec_text(leaf.spec)}: {left} and {right} have "
                    "devices in common; an array can be split over each only once"
                )
    return refusals


def _constants(graph: Graph, plan: ShardingPlan) -> list[str]:
    budget = plan.limits.constant_bytes
    return [
        f"a closed-over constant {c.dtype} {c.shape}, read at {c.source or _NO_LINE}: {c.num_bytes} "
        f"bytes would be copied to every device, above constant_bytes={budget}; pass it as a parameter or in the batch"
        for c in graph.constants
        if c.num_bytes > budget and plan.mesh.num_devices > 1
    ]


def _constraints(graph: Graph) -> list[str]:
    """The user's own constraints that jax would turn into a copy of the whole, without a word."""
    return [
        f"a with_sharding_constraint at {c.source or _NO_LINE}: dim {i} of {c.shape} is {size}, which does not divide "
        f"by {'*'.join(axes)}={ways}, so that jax would copy the whole value, {c.num_bytes} bytes, to every device; "
        f"sizes that divide it: {legal_sizes(size)}"
        for c in graph.constraints
        for i, (size, (ways, axes)) in enumerate(zip(c.shape, c.parts, strict=True))
        if size % ways
    ]


def _repeated_work(graph: Graph, plan: ShardingPlan) -> list[str]:
    """Matmuls computed by more than one device each, those aside whose leaves say so: heads that others share."""
    splits = splits_of(graph, plan.mesh, [leaf.spec for leaf in plan.leaves])
    work = work_of(graph, plan.mesh, splits, exchanges_of(graph, plan.mesh, splits, plan.limits))
    said = {i for i, leaf in enumerate(plan.leaves) if SHARED_HEADS.intersection(leaf.rules)}
    silent = tuple(dataclasses.replace(one, num_copies=1) if said & _parameters(graph, one) else one for one in work)
    ratio = flops_ratio(silent)
    if ratio <= plan.limits.max_flops_ratio:
        return []
    worst = sorted(silent, key=lambda one: -one.num_flops * (one.num_copies - 1))[:_MAX_SHOWN]
    causes = [_cause(graph, plan, one) for one in worst if one.num_copies > 1]
    return [
        f"the devices compute {ratio:.2f} times what is to be computed, above "
        f"max_flops_ratio={plan.limits.max_flops_ratio}: {'; '.join(causes)}"
    ]


def _cause(graph: Graph, plan: ShardingPlan, work: Work) -> str:
    c = graph.contractions[work.contraction]
    what = f"a matmul {c.left.shape} x {c.right.shape} at {c.source or c.address} is computed {work.num_copies} times"
    return f"{what} ({'; '.join(_whys([plan.leaves[i] for i in sorted(_parameters(graph, work))])[:_MAX_SHOWN])})"


def _whys(leaves: list[PlannedLeaf]) -> list[str]:
    """Why a matmul is not split further: what kept a rule from its parameters, or that none considered them."""
    if not leaves:
        return ["no parameter takes part; it is split as its operands are"]
    rejected = {f"{leaf.path}: {why}" for leaf in leaves for why in leaf.rejected if " over " in why and "=" in why}
    return sorted(rejected) or [
        f"no rule considered {leaf.path} {leaf.shape} over {spec_text(leaf.spec)} further: {leaf.reasons[-1]}; "
        f"sizes that divide it: {'; '.join(f'dim {i}: {legal_sizes(size)}' for i, size in enumerate(leaf.shape))}"
        for leaf in leaves
    ]


def _parameters(graph: Graph, work: Work) -> frozenset[int]:
    c = graph.contractions[work.contraction]
    return c.left.parameters | c.right.parameters


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
