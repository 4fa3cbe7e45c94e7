"""What the specs of the leaves say of the computation: which factor is computed in parts, over which axes.

A parameter that is split over `tensor` is used where it stands, so the factors of its split dims are computed in parts
wherever they stand. Over `fsdp` it is only kept in parts, and gathered where it is used.
"""

from collections.abc import Iterable, Mapping, Sequence

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.experts import expert_factors
from jaxscale.sharding.factors import Dim, Dims
from jaxscale.sharding.graph import Contraction, Graph
from jaxscale.sharding.specs import BATCH_AXES, DimAxes, Spec, bounds, merged, num_parts, overlap, part

# Of a parameter's axes, those that split what is computed with it.
_COMPUTED = ("tensor", "expert")

Splits = Mapping[int, DimAxes]


def splits_of(graph: Graph, mesh: MeshSpec, specs: Sequence[Spec]) -> dict[int, DimAxes]:
    """The axes that every factor is computed over, by factor; factors that are whole everywhere are absent.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      specs: one per leaf of the graph.
    """
    splits: dict[int, DimAxes] = {}
    for leaf, spec in zip(graph.leaves, specs, strict=True):
        if leaf.role == "optimizer":
            continue
        for dim, axes in zip(leaf.dims, spec, strict=True):
            computed = axes if leaf.role == "batch" else tuple(a for a in axes if axis_of(a) in _COMPUTED)
            for factor, mine in deal(graph, mesh, dim, computed).items():
                splits.setdefault(factor, mine)
    experts = expert_factors(graph)
    for c in graph.contractions:
        splits.update(_slots(graph, mesh, c, splits, experts))
    return splits


def deal(graph: Graph, mesh: MeshSpec, dim: Dim, axes: Sequence[str]) -> dict[int, DimAxes]:
    """Which of a dim's factors, most significant first, is cut by which of the axes that the dim is split over."""
    dealt: dict[int, DimAxes] = {}
    factors = list(dim)
    left = graph.sizes[factors[0]] if factors else 1
    for entry in axes:
        start, end = bounds(mesh, entry)
        while factors and start < end:
            if left == 1:
                factors.pop(0)
                left = graph.sizes[factors[0]] if factors else 1
                continue
            ways = end // start
            if left % ways and ways % left:
                return dealt
            ways = min(left, ways)
            dealt[factors[0]] = (*dealt.get(factors[0], ()), part(mesh, axis_of(entry), start, start * ways))
            start, left = start * ways, left // ways
    return dealt


def spec_of_value(graph: Graph, mesh: MeshSpec, dims: Dims, splits: Splits, *, first: Iterable[int] = ()) -> Spec:
    """The spec of a value with these dims; an axis that two of them could have goes to the first.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      dims: of the value.
      splits: what the factors are computed over.
      first: factors that come before all others.
    """
    first = set(first)
    order = sorted(range(len(dims)), key=lambda i: (first.isdisjoint(dims[i]), i))
    taken: list[str] = []
    made: dict[int, DimAxes] = {}
    for i in order:
        made[i] = merged(mesh, _of_dim(graph, mesh, dims[i], splits, taken))
        taken += made[i]
    return tuple(made[i] for i in range(len(dims)))


def split_ways(mesh: MeshSpec, factors: Iterable[int], splits: Splits) -> DimAxes:
    """The axes, each counted once, that split any of these factors."""
    taken: list[str] = []
    for factor in factors:
        taken += [a for a in splits.get(factor, ()) if not any(overlap(mesh, a, b) for b in taken)]
    return tuple(taken)


def _of_dim(graph: Graph, mesh: MeshSpec, dim: Dim, splits: Splits, taken: Sequence[str]) -> list[str]:
    axes: list[str] = []
    for factor in dim:
        mine = [a for a in splits.get(factor, ()) if not any(overlap(mesh, a, b) for b in taken)]
        axes += mine
        if num_parts(mesh, mine) != graph.sizes[factor]:
            break
    return axes


def _slots(
    graph: Graph, mesh: MeshSpec, contraction: Contraction, splits: Splits, experts: frozenset[int]
) -> dict[int, DimAxes]:
    """Of data that was routed to experts: what it has in the place of examples is split as those would be.

    Each expert takes in a fixed number of slots. Where no factor of them is an example's, the first is split over the
    axes of the batch that the experts leave, so that they are not all computed by every group of devices.
    """
    data = contraction.left if contraction.left.is_data else contraction.right
    if not contraction.is_of_parameters or experts.isdisjoint(contraction.batch) or not data.free:
        return {}
    others = [f for f in (*data.free, *contraction.batch) if f not in experts]
    if any(axis_of(a) in BATCH_AXES for f in others for a in splits.get(f, ())):
        return {}
    used = split_ways(mesh, contraction.factors, splits)
    axes: list[str] = []
    for axis in BATCH_AXES:
        free = mesh.sizes[axis] > 1 and not any(axis_of(a) == axis for a in used)
        if free and graph.sizes[data.free[0]] % num_parts(mesh, (*axes, axis)) == 0:
            axes.append(axis)
    return {data.free[0]: tuple(axes)} if axes else {}
