"""The rules for `tensor`: what is computed in parts, each a pure function of the graph and the mesh.

No rule reads a name. Ties are broken by the first use in the program, then by the dim's index.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.choices import Choice, Choices, not_divisible, what_is
from jaxscale.sharding.experts import expert_factors, shared_heads
from jaxscale.sharding.factors import Dim
from jaxscale.sharding.fused import FusedDim, fused_dims
from jaxscale.sharding.graph import Graph, Leaf
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.pairs import Pair, pairs_of, pairs_of_parts
from jaxscale.sharding.specs import factors_of, part
from jaxscale.sharding.splits import Splits, spec_of_value, splits_of

# Rules by which several devices compute the same keys and values, for the queries that each of them has.
SHARED_HEADS = frozenset({"grouped heads", "shared head"})


def columns_then_rows(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """What one matmul makes and the next contracts is split over `tensor` in both, for one reduction a pair.

    Of heads it is their number, never their width. Pairs are taken in the order of values moved per FLOP that is
    split; a pair that would split a leaf twice is left out, so that consecutive matmuls alternate.

    Reference: Shoeybi et al. 2019 (Megatron-LM), section 3, https://arxiv.org/abs/1909.08053
    """
    if mesh.tensor == 1:
        return choices
    made = list(choices)
    for pair in pairs_of(graph, mesh.tensor):
        splits = splits_of(graph, mesh, [choice.spec for choice in made])
        if any(axis_of(axis) == "tensor" for axis in splits.get(pair.factors[0], ())):
            continue
        places = _places(graph, pair, made)
        trial = _placed(graph, mesh, pair, places, made)
        taken = [i for i, found in places.items() if _is_taken(found, made[i])]
        fits = factors_of(mesh, [choice.spec for choice in trial]) is not None
        for i, found in places.items():
            what = what_is(graph.leaves[i], found[0].dim, graph)
            if pair.illegal is not None:
                made[i] = made[i].reject(f"{what} over tensor={mesh.tensor}: {pair.illegal}")
            elif taken:
                made[i] = made[i].reject(f"{what} over tensor: {_conflict(graph, taken, places)}")
            elif not fits:
                made[i] = made[i].reject(f"{what} over tensor: the axis is taken in parts that this one does not fit")
        if pair.illegal is None and not taken and fits:
            made = trial
    return tuple(_say_shared_heads(graph, mesh, made))


def vocabulary(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """Rows that the batch looks up, and outputs over the same, are split over `tensor`.

    A small table that is only looked up stays whole; one that a matmul reads would have every device compute all of it.

    Reference: Shoeybi et al. 2019 (Megatron-LM), section 3, https://arxiv.org/abs/1909.08053
    """
    if mesh.tensor == 1:
        return choices

    rows = graph.looked_up - expert_factors(graph)
    multiplied = {i for c in graph.contractions if c.is_of_parameters for i in c.left.parameters | c.right.parameters}

    def split(i: int, leaf: Leaf, choice: Choice) -> Choice:
        found = [j for j, dim in enumerate(leaf.dims) if dim and dim[0] in rows and j not in choice.fixed]
        is_small = leaf.num_bytes < limits.small_leaf_bytes and i not in multiplied
        if not found or choice.uses("tensor") or is_small:
            return choice
        dim, size = found[0], leaf.shape[found[0]]
        if size % mesh.tensor:
            return choice.reject(f"dim {dim} ({size}) over tensor={mesh.tensor}: {not_divisible(size, mesh.tensor)}")
        return choice.place(dim, ("tensor",), "vocabulary", f"dim {dim} ({size}) is indexed by the batch")

    return tuple(
        split(i, leaf, choice) if leaf.role == "parameter" else choice
        for i, (leaf, choice) in enumerate(zip(graph.leaves, choices, strict=True))
    )


def fused_projection(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """Columns that are several parts, one after the other, are split over `tensor` where every part of them is.

    Queries, keys and values that one matmul makes, or a gate and what it gates, which later matmuls contract. They are
    stored so that every device has its piece of each part, as a contiguous cut would run across them; so is a bias.

    Reference: Shoeybi et al. 2019 (Megatron-LM), section 3, https://arxiv.org/abs/1909.08053
    """
    if mesh.tensor == 1:
        return choices
    made = list(choices)
    splits = splits_of(graph, mesh, [choice.spec for choice in choices])
    for fused in fused_dims(graph):
        choice, leaf = made[fused.leaf], graph.leaves[fused.leaf]
        if choice.uses("tensor") or fused.dim in choice.fixed:
            continue
        why_not = _why_not_dealt(graph, mesh, fused, splits)
        if why_not is None:
            reason = (
                f"{what_is(leaf, fused.dim, graph)} is {len(fused.parts)} parts that later matmuls contract (columns)"
            )
            choice = choice.place(fused.dim, ("tensor",), "fused projection", reason)
            made[fused.leaf] = dataclasses.replace(choice, layout=fused.layout(graph, mesh.tensor))
        elif why_not:
            what = f"{what_is(leaf, fused.dim, graph)} over tensor={mesh.tensor} by its parts {fused.parts}"
            made[fused.leaf] = choice.reject(f"{what}: {why_not}")
    return tuple(made)


def _why_not_dealt(graph: Graph, mesh: MeshSpec, fused: FusedDim, splits: Splits) -> str | None:
    """Why the parts can't be dealt out; None where they can, nothing where none of them is contracted later."""
    pairs = pairs_of_parts(graph, fused, mesh.tensor)
    if not any(pairs):
        return ""
    for i, pair in enumerate(pairs):
        if pair is None:
            return f"no later matmul contracts part {i}"
        if pair.illegal is not None:
            return f"of part {i}, {pair.illegal}"
    for i, dim in enumerate(fused.factors):
        if spec_of_value(graph, mesh, (dim,), splits) != (("tensor",),):
            return f"part {i} is not split where it is contracted"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """A dim of a leaf that begins with the factors `start` to `end` of a pair."""

    dim: int
    start: int
    end: int


def _places(graph: Graph, pair: Pair, choices: Sequence[Choice]) -> dict[int, list[_Found]]:
    """The dims, by parameter, that begin with factors of the pair."""
    places: dict[int, list[_Found]] = {}
    for i, leaf in enumerate(graph.leaves):
        found = [
            _Found(dim=j, start=start, end=start + num_alike)
            for j, dim in enumerate(leaf.dims)
            for start in range(len(pair.factors))
            if (num_alike := _num_alike(dim, pair.factors[start:])) and j not in choices[i].fixed
        ]
        if leaf.role == "parameter" and found:
            places[i] = found
    return places


def _num_alike(dim: Dim, factors: Dim) -> int:
    pairs = enumerate(zip(dim, factors, strict=False))
    return next((i for i, (mine, theirs) in pairs if mine != theirs), min(len(dim), len(factors)))


def _is_taken(found: list[_Found], choice: Choice) -> bool:
    """Whether the leaf has the same factor twice, or `tensor` elsewhere."""
    covered = [i for one in found for i in range(one.start, one.end)]
    return len(set(covered)) < len(covered) or choice.uses("tensor")


def _placed(
    graph: Graph, mesh: MeshSpec, pair: Pair, places: dict[int, list[_Found]], choices: Sequence[Choice]
) -> list[Choice]:
    made = list(choices)
    for i, found in places.items() if pair.ways else ():
        for one in found:
            start, end = math.prod(pair.ways[: one.start]), math.prod(pair.ways[: one.end])
            axes = part(mesh, "tensor", start, end)
            if start == end:
                continue
            made[i] = made[i].place(one.dim, (axes,), "columns then rows", _pair_reason(graph, pair, i, one))
        ways = math.prod(pair.ways[k] for one in found for k in range(one.start, one.end))
        if ways < mesh.tensor:
            what = f"{what_is(graph.leaves[i], found[0].dim, graph)} over tensor={mesh.tensor}"
            why = (
                f"it has {ways} of the pieces that the axis shares out; each is copied to {mesh.tensor // ways} devices"
            )
            made[i] = made[i].reject(f"{what}: {why}")
            made[i] = made[i].leave("grouped heads", f"{mesh.tensor // ways} devices read each, for their queries")
    return made


def _conflict(graph: Graph, taken: Sequence[int], places: dict[int, list[_Found]]) -> str:
    path = graph.leaves[taken[0]].path
    if len(places[taken[0]]) > 1:
        return f"it is two dims of {path} at once"
    return f"another dim of {path} is split over tensor"


def _pair_reason(graph: Graph, pair: Pair, leaf: int, found: _Found) -> str:
    what = what_is(graph.leaves[leaf], found.dim, graph)
    factor = pair.factors[found.start]
    uses = [c for c in graph.contractions if leaf in c.left.parameters or leaf in c.right.parameters]
    if any(factor in c.contracted for c in uses):
        return f"{what} is contracted here, after the matmul that makes it (rows)"
    if any(factor in c.factors for c in uses):
        return f"{what} is made here and contracted by a later matmul (columns)"
    return f"{what} goes along with columns that are split"


def _say_shared_heads(graph: Graph, mesh: MeshSpec, choices: Sequence[Choice]) -> list[Choice]:
    """Says of one key-value head that all query heads share that every device keeps and computes it."""
    splits = splits_of(graph, mesh, [choice.spec for choice in choices])
    return [
        choice.leave("shared head", f"every device of tensor={mesh.tensor} computes the one head that all others read")
        if i in shared_heads(graph, splits) and not choice.uses("tensor")
        else choice
        for i, choice in enumerate(choices)
    ]
