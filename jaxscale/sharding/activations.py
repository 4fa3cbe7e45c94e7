"""Which activations to pin, and where: what matmuls with parameters make, what is looked up, what is routed.

The compiler's propagation decides for all others. A result is pinned only if the plan knows how it is split over every
axis of the batch: a wrong pin would gather what is better left alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.exchanges import Exchanges, is_of_experts
from jaxscale.sharding.experts import expert_factors
from jaxscale.sharding.factors import Dim, Dims
from jaxscale.sharding.graph import Activation, Contraction, Graph
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.specs import BATCH_AXES, DimAxes, Spec, bounds, part
from jaxscale.sharding.splits import Splits, spec_of_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedActivation:
    """Where one intermediate result lives, and why.

    Attributes:
      address: the equation that makes it, in the program of the loss.
      output: which of the equation's outputs.
      shape: of the whole array.
      spec: for every dim the axes it is split over.
      rule: what decided.
      reason: why, in words.
      through: where it is before that, step by step, of what the compiler can't take there at once.
    """

    address: Address
    output: int
    shape: tuple[int, ...]
    spec: Spec
    rule: str
    reason: str
    through: tuple[Spec, ...] = ()


# By a dim that is stored in another order than the logical: the axes that it is split over.
StoredDims = Mapping[Dim, DimAxes]


def activations_of(
    graph: Graph,
    mesh: MeshSpec,
    specs: Sequence[Spec],
    splits: Splits,
    stored: StoredDims,
    exchanges: Exchanges,
    returns: Exchanges,
) -> tuple[PlannedActivation, ...]:
    """The pins, in the order of the program.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      specs: one per leaf of the graph.
      splits: what its factors are computed over.
      stored: what comes of leaves with a layout; its factors don't say how it is cut.
      exchanges: the contractions that send tokens to experts, or back, in parts.
      returns: those that only bring them back in parts, where none is sent.
    """
    found: dict[tuple[Address, int], PlannedActivation] = {}
    for made in graph.activations:
        for pin in _pins(graph, mesh, splits, stored, made):
            pin = dataclasses.replace(pin, through=_through(graph, specs, made, pin.spec))
            found.setdefault((pin.address, pin.output), _width_over_the_rest(graph, mesh, made, pin))
    if exchanges:
        _send_in_parts(graph, mesh, splits, exchanges, found)
    elif mesh.expert > 1:
        _exchange_examples(graph, mesh, splits, found)
    if returns and not exchanges:
        _combine_in_parts(graph, mesh, splits, returns, found)
    return tuple(found[place] for place in sorted(found))


def _pins(
    graph: Graph, mesh: MeshSpec, splits: Splits, stored: StoredDims, made: Activation
) -> list[PlannedActivation]:
    contraction = None if made.contraction is None else graph.contractions[made.contraction]
    routed = expert_factors(graph)
    experts = routed.intersection(contraction.batch) if contraction and contraction.is_of_parameters else frozenset()
    why = _why(graph, contraction, made, splits, experts)
    spec = spec_of_value(graph, mesh, made.dims, splits, first=experts)
    spec = tuple(stored.get(dim, axes) for dim, axes in zip(made.dims, spec, strict=True))
    if why is None or not _knows_the_batch(graph, mesh, made.dims, spec):
        return []
    pins = [_pin(made.address, made.output, made.shape, spec, *why)]
    if contraction is not None and experts:
        data = contraction.left if contraction.left.is_data else contraction.right
        if data.made_by is not None:
            spec = spec_of_value(graph, mesh, data.dims, splits, first=experts)
            pins.append(_pin(*data.made_by, data.shape, spec, "experts", "what each device's experts read"))
    return pins


def _through(graph: Graph, specs: Sequence[Spec], made: Activation, spec: Spec) -> tuple[Spec, ...]:
    """Of rows that are kept in parts over `fsdp`: where they are first, with those parts still apart.

    Every device looks up its part of the rows for the examples of its `fsdp` group, and they exchange parts for
    examples. Where `fsdp` is not the only axis of the batch the compiler does not find that way, and gathers all.
    """
    if made.kind != "lookup":
        return ()
    for leaf, kept in zip(graph.leaves, specs, strict=True):
        if leaf.role != "parameter" or not any(made.indexed.intersection(dim) for dim in leaf.dims):
            continue
        apart = {dim for dim, axes in zip(leaf.dims, kept, strict=True) if "fsdp" in axes and dim in made.dims}
        others = [_before_fsdp(axes) for axes in spec]
        if apart and any(axis in BATCH_AXES for axes in others for axis in axes):
            first = ((*axes, "fsdp") if dim in apart else axes for dim, axes in zip(made.dims, others, strict=True))
            return (tuple(first),)
    return ()


def _width_over_the_rest(graph: Graph, mesh: MeshSpec, made: Activation, pin: PlannedActivation) -> PlannedActivation:
    """Of columns over a part of `tensor`, as grouped heads are: first their width over the rest, and then gathered.

    Each device makes a piece of what the devices of its part read. The gradient of what the columns are multiplied
    with is then a sum over all of `tensor`, as that of the queries is, and one reduction does for both; over the part
    alone it would be one more, of the whole residual stream.
    """
    if made.contraction is None or (made.address, made.output) != (pin.address, pin.output):
        return pin
    c = graph.contractions[made.contraction]
    taken = [bounds(mesh, axis) for axes in pin.spec for axis in axes if axis_of(axis) == "tensor"]
    if not c.is_of_parameters or len(taken) != 1 or taken[0][0] > 1 or taken[0][1] == mesh.tensor:
        return pin
    columns = set((c.right if c.left.is_data else c.left).free)
    ways, rest = mesh.tensor // taken[0][1], part(mesh, "tensor", taken[0][1], mesh.tensor)
    for i, (dim, axes) in enumerate(zip(made.dims, pin.spec, strict=True)):
        if dim and not axes and columns.issuperset(dim) and graph.sizes[dim[0]] % ways == 0:
            first = (*pin.spec[:i], (rest,), *pin.spec[i + 1 :])
            reason = f"{pin.reason}; {ways} devices read each, make a piece of its width, and gather it"
            return dataclasses.replace(pin, through=(first,), reason=reason)
    return pin


def _before_fsdp(axes: DimAxes) -> DimAxes:
    return axes[: axes.index("fsdp")] if "fsdp" in axes else axes


def _send_in_parts(
    graph: Graph,
    mesh: MeshSpec,
    splits: Splits,
    exchanges: Exchanges,
    found: dict[tuple[Address, int], PlannedActivation],
) -> None:
    """Pins tokens that are sent in parts: first in parts, then where they would be; what experts make, in parts."""
    experts = expert_factors(graph)
    widths = {factor: axes for local in exchanges.values() for factor, axes in local.items()}
    for i in exchanges:
        for side in (graph.contractions[i].left, graph.contractions[i].right):
            factors = {factor for dim in side.dims for factor in dim}
            if side.made_by is not None and factors.intersection(widths) and experts.isdisjoint(factors):
                # Their gradient is whole again before it meets that of the other ways the tokens take.
                spec = spec_of_value(graph, mesh, side.dims, splits)
                pin = _pin(*side.made_by, side.shape, spec, "experts", "tokens that are sent to the experts in parts")
                found.setdefault(side.made_by, pin)
    for made in graph.activations:
        if made.contraction is None:
            continue
        c, place = graph.contractions[made.contraction], (made.address, made.output)
        in_parts = spec_of_value(graph, mesh, made.dims, {**splits, **widths}, first=experts)
        whole = spec_of_value(graph, mesh, made.dims, splits, first=experts)
        if in_parts == whole or not _knows_the_batch(graph, mesh, made.dims, whole):
            continue
        if made.contraction in exchanges and place in found:
            found[place] = dataclasses.replace(found[place], through=(in_parts,))
        elif made.contraction in exchanges:
            pin = _pin(*place, made.shape, whole, "experts", "what comes back from the experts, sent in parts")
            # What is on its way to them is gathered where they read it.
            arrives = experts.isdisjoint(factor for dim in made.dims for factor in dim)
            found[place] = (
                dataclasses.replace(pin, through=(in_parts,)) if arrives else dataclasses.replace(pin, spec=in_parts)
            )
        elif is_of_experts(c, experts) and place in found:
            found[place] = _scattered(found[place], whole, in_parts)


def _combine_in_parts(
    graph: Graph,
    mesh: MeshSpec,
    splits: Splits,
    returns: Exchanges,
    found: dict[tuple[Address, int], PlannedActivation],
) -> None:
    """Pins what experts make in parts of its width, and what is combined of it first in parts, then whole."""
    experts = expert_factors(graph)
    widths = {factor: axes for local in returns.values() for factor, axes in local.items()}
    for made in graph.activations:
        if made.contraction is None:
            continue
        c, place = graph.contractions[made.contraction], (made.address, made.output)
        in_parts = spec_of_value(graph, mesh, made.dims, {**splits, **widths}, first=experts)
        whole = spec_of_value(graph, mesh, made.dims, splits, first=experts)
        if in_parts == whole or not _knows_the_batch(graph, mesh, made.dims, whole):
            continue
        if made.contraction in returns:
            reason = "what experts made is combined in parts of its width"
            found[place] = _pin(*place, made.shape, whole, "experts", reason, through=(in_parts,))
        elif is_of_experts(c, experts) and place in found:
            found[place] = _scattered(found[place], whole, in_parts)


def _scattered(pin: PlannedActivation, whole: Spec, in_parts: Spec) -> PlannedActivation:
    """What experts make, added up and scattered over its width, and the parts sent where the whole would be.

    Whole first: the compiler makes one reduce-scatter of the sum and the cut. Asked for parts at once, it takes a large
    matmul apart into a ring of permutes, the first of which send zeros, and gathers the gradient twice.
    """
    steps = (*pin.through, pin.spec)
    cut = [
        tuple(part if part != axes else kept for kept, axes, part in zip(step, whole, in_parts, strict=True))
        for step in steps
    ]
    reason = "what each device's experts make is sent back in parts"
    return dataclasses.replace(pin, through=(steps[0], *cut[:-1]), spec=cut[-1], reason=reason)


def _exchange_examples(
    graph: Graph, mesh: MeshSpec, splits: Splits, found: dict[tuple[Address, int], PlannedActivation]
) -> None:
    """Lets devices exchange examples for experts and back: tokens are read, and what comes back summed, by examples.

    Pinned to experts alone, the compiler gathers the examples of all experts, adds up for them, and gathers again.
    """
    experts = expert_factors(graph)

    def by_examples(dims: Dims) -> Spec:
        return spec_of_value(graph, mesh, dims, splits, first={f for dim in dims for f in dim} - experts)

    sends = [c for c in graph.contractions if c.left.is_data and c.right.is_data]
    back = {side.dims for c in sends if not experts.isdisjoint(c.contracted) for side in (c.left, c.right)}
    for made in graph.activations:
        place = (made.address, made.output)
        if made.contraction is None or place not in found or found[place].rule != "experts":
            continue
        pin, local = found[place], by_examples(made.dims)
        if not is_of_experts(graph.contractions[made.contraction], experts):
            found[place] = dataclasses.replace(pin, through=(local,))
        elif made.dims in back:
            reason = "what each device's experts make goes back to the examples"
            found[place] = dataclasses.replace(pin, through=(pin.spec,), spec=local, reason=reason)


def _pin(
    address: Address,
    output: int,
    shape: tuple[int, ...],
    spec: Spec,
    rule: str,
    reason: str,
    *,
    through: tuple[Spec, ...] = (),
) -> PlannedActivation:
    return PlannedActivation(
        address=address, output=output, shape=shape, spec=spec, rule=rule, reason=reason, through=through
    )


def _why(
    graph: Graph, contraction: Contraction | None, made: Activation, splits: Splits, experts: frozenset[int]
) -> tuple[str, str] | None:
    """The rule and the reason of a pin; None for what needs none."""
    if contraction is not None:
        return _why_contraction(contraction, splits, experts) if contraction.is_of_parameters else None
    if made.kind == "boundary":
        return ("boundary", "equations inside a custom derivative can't be pinned")
    if all(_is_split_by_batch(factor, splits) for dim in made.dims for factor in dim):
        # One number per position, as of the targets' scores.
        return None
    if made.kind == "lookup":
        return ("vocabulary", "rows that the batch looks up")
    routed = expert_factors(graph)
    if made.indexed & routed or (routed and any(_is_example(graph, factor) for factor in made.indexed)):
        return ("experts", "what is sent to the experts and back")
    return None


def _why_contraction(c: Contraction, splits: Splits, experts: frozenset[int]) -> tuple[str, str]:
    if experts:
        return ("experts", "each device computes its own experts")
    if any(axis_of(a) == "tensor" for factor in c.contracted for a in splits.get(factor, ())):
        return ("columns then rows", "the sum of what the rows make, whole again")
    if any(axis_of(a) == "tensor" for factor in c.outputs for a in splits.get(factor, ())):
        return ("columns then rows", "split columns make split results")
    return ("batch", "each device computes its own examples")


def _knows_the_batch(graph: Graph, mesh: MeshSpec, dims: Dims, spec: Spec) -> bool:
    needed = {axis for axis in BATCH_AXES if mesh.sizes[axis] > 1}
    if not needed:
        return any(spec) or any(_is_example(graph, factor) for dim in dims for factor in dim)
    return needed <= {axis_of(a) for axes in spec for a in axes}


def _is_split_by_batch(factor: int, splits: Splits) -> bool:
    return any(axis_of(a) in (*BATCH_AXES, "sequence") for a in splits.get(factor, ()))


def _is_example(graph: Graph, factor: int) -> bool:
    return any(leaf.role == "batch" and leaf.shape and factor in leaf.dims[0] for leaf in graph.leaves)
