"""The rules that choose a spec for every leaf: few, in order, each a pure function of the graph and the mesh.

No rule reads a name. Ties are broken by the first use in the program, then by the dim's index.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.experts import expert_factors, leaves_with_free, shared_heads
from jaxscale.sharding.factors import Dim
from jaxscale.sharding.graph import Graph, Leaf
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.pairs import Pair, pairs_of
from jaxscale.sharding.specs import BATCH_AXES, DimAxes, Spec, factors_of, legal_sizes, num_parts, part
from jaxscale.sharding.splits import splits_of

_NOTHING_PLACED = "whole"
# Rules by which several devices compute the same keys and values, for the queries that each of them has.
SHARED_HEADS = frozenset({"grouped heads", "shared head"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What has been chosen for one leaf so far: the axes of every dim, by which rules, and why not otherwise."""

    spec: Spec
    rules: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    # Dims that a user's pin decides.
    fixed: frozenset[int] = frozenset()

    def place(self, dim: int, axes: DimAxes, rule: str, reason: str) -> "Choice":
        """The choice with dim `dim` split over `axes` as well."""
        spec = tuple((*mine, *axes) if i == dim else mine for i, mine in enumerate(self.spec))
        return dataclasses.replace(self, spec=spec, rules=(*self.rules, rule), reasons=(*self.reasons, reason))

    def leave(self, rule: str, reason: str) -> "Choice":
        """The choice unchanged, with the reason why `rule` leaves the leaf as it is."""
        return dataclasses.replace(self, rules=(*self.rules, rule), reasons=(*self.reasons, reason))

    def reject(self, reason: str) -> "Choice":
        """The choice with one more thing that was considered and not done."""
        return dataclasses.replace(self, rejected=(*self.rejected, reason))

    def uses(self, axis: str) -> bool:
        """Whether some dim is split over `axis`, or a part of it."""
        return any(axis_of(entry) == axis for axes in self.spec for entry in axes)


# One choice per leaf of the graph.
Choices = tuple[Choice, ...]
Rule = Callable[[Graph, MeshSpec, Limits, Choices], Choices]


def nothing_placed(graph: Graph) -> Choices:
    """The choices before any rule."""
    return tuple(Choice(spec=((),) * len(leaf.shape)) for leaf in graph.leaves)


def layers_stay_whole(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """A dim that a scan goes through is never split: each step would have to fetch its slice from another device."""

    def note(leaf: Leaf, choice: Choice) -> Choice:
        for i in sorted(_scanned_dims(graph, leaf)):
            choice = choice.reject(f"dim {i} ({leaf.shape[i]}): a scan goes through it step by step")
        return choice

    if mesh.tensor == mesh.fsdp == mesh.expert == 1:
        return choices
    return tuple(
        note(leaf, choice) if leaf.role != "batch" else choice
        for leaf, choice in zip(graph.leaves, choices, strict=True)
    )


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
            what = _what(graph.leaves[i], found[0].dim, graph)
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

    Reference: Shoeybi et al. 2019 (Megatron-LM), section 3, https://arxiv.org/abs/1909.08053
    """
    if mesh.tensor == 1:
        return choices

    rows = graph.looked_up - expert_factors(graph)

    def split(leaf: Leaf, choice: Choice) -> Choice:
        found = [i for i, dim in enumerate(leaf.dims) if dim and dim[0] in rows and i not in choice.fixed]
        if not found or choice.uses("tensor") or leaf.num_bytes < limits.small_leaf_bytes:
            return choice
        dim, size = found[0], leaf.shape[found[0]]
        if size % mesh.tensor:
            return choice.reject(f"dim {dim} ({size}) over tensor={mesh.tensor}: {_not_divisible(size, mesh.tensor)}")
        return choice.place(dim, ("tensor",), "vocabulary", f"dim {dim} ({size}) is indexed by the batch")

    return tuple(
        split(leaf, choice) if leaf.role == "parameter" else choice
        for leaf, choice in zip(graph.leaves, choices, strict=True)
    )


def fully_shard(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """The largest dim that is left and divides is split over `fsdp`; it is gathered where it is used.

    Reference: Rajbhandari et al. 2019 (ZeRO), section 5.3, https://arxiv.org/abs/1910.02054
    """
    if mesh.fsdp == 1:
        return choices
    return tuple(
        _fully_sharded(graph, mesh, limits, leaf, choice)
        if leaf.role == "parameter" or (leaf.role == "optimizer" and leaf.follows is None and leaf.shape)
        else choice
        for leaf, choice in zip(graph.leaves, choices, strict=True)
    )


def follow_the_parameter(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """Optimizer state made from one parameter's gradient is split as that parameter is, dim by dim."""

    def follow(leaf: Leaf, choice: Choice) -> Choice:
        if leaf.role != "optimizer" or leaf.follows is None or choice.fixed:
            return choice
        parameter, theirs = graph.leaves[leaf.follows], choices[leaf.follows]
        return dataclasses.replace(
            choice,
            spec=_spec_like(leaf, parameter, theirs.spec),
            rules=("follows",),
            reasons=(f"made from the gradient of {parameter.path}",),
            rejected=theirs.rejected,
        )

    return tuple(follow(leaf, choice) for leaf, choice in zip(graph.leaves, choices, strict=True))


def split_the_batch(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """The examples of a batch, its leaves' leading dim, are split over every axis but `sequence`, `tensor`, `stage`."""
    axes = tuple(axis for axis in BATCH_AXES if mesh.sizes[axis] > 1)

    def split(leaf: Leaf, choice: Choice) -> Choice:
        if leaf.role != "batch" or not leaf.shape or not axes or 0 in choice.fixed:
            return choice
        return choice.place(0, axes, "batch", "dim 0 holds the examples")

    return tuple(split(leaf, choice) for leaf, choice in zip(graph.leaves, choices, strict=True))


def split_the_sequence(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """The positions of an example are split over `sequence`: a dim of the batch that matmuls with parameters keep.

    Where positions meet each other, in attention, the keys and values of all of them are gathered.

    Reference: Korthikanti et al. 2022, section 4.2.2, https://arxiv.org/abs/2205.05198
    """
    if mesh.sequence == 1:
        return choices
    examples = {f for leaf in graph.leaves if leaf.role == "batch" and leaf.shape for f in leaf.dims[0]}
    sides = [side for c in graph.contractions if c.is_of_parameters for side in (c.left, c.right) if side.is_data]
    positions = {f for side in sides for f in side.free} - examples

    def split(leaf: Leaf, choice: Choice) -> Choice:
        found = [
            i for i, dim in enumerate(leaf.dims) if i > 0 and dim and dim[0] in positions and i not in choice.fixed
        ]
        if leaf.role != "batch" or not found or choice.uses("sequence"):
            return choice
        dim, size = found[0], leaf.shape[found[0]]
        if size % mesh.sequence:
            why = _not_divisible(size, mesh.sequence)
            return choice.reject(f"dim {dim} ({size}) over sequence={mesh.sequence}: {why}")
        return choice.place(dim, ("sequence",), "sequence", f"dim {dim} ({size}) holds the positions")

    return tuple(split(leaf, choice) for leaf, choice in zip(graph.leaves, choices, strict=True))


def experts(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """Parameters that the batch is routed to, each part of it to a few of them, are split over `expert`.

    Reference: Lepikhin et al. 2020 (GShard), section 2.2, https://arxiv.org/abs/2006.16668
    """
    if mesh.expert == 1:
        return choices
    found = expert_factors(graph)
    elsewhere = leaves_with_free(graph, found)

    def split(i: int, leaf: Leaf, choice: Choice) -> Choice:
        dims = [j for j, dim in enumerate(leaf.dims) if dim and dim[0] in found and j not in choice.fixed]
        if leaf.role != "parameter" or not dims or choice.uses("expert"):
            return choice
        dim, size = dims[0], graph.sizes[leaf.dims[dims[0]][0]]
        if i in elsewhere or len([d for d in leaf.dims if d]) == 1:
            return choice.reject(f"{_what(leaf, dim, graph)} over expert: what routes is computed with the examples")
        if size % mesh.expert:
            why = _not_divisible(size, mesh.expert)
            return choice.reject(f"{_what(leaf, dim, graph)} over expert={mesh.expert}: {why}")
        return choice.place(dim, ("expert",), "experts", f"{_what(leaf, dim, graph)} is what the batch is routed to")

    return tuple(split(i, leaf, choice) for i, (leaf, choice) in enumerate(zip(graph.leaves, choices, strict=True)))


RULES: tuple[Rule, ...] = (
    layers_stay_whole,
    experts,
    columns_then_rows,
    vocabulary,
    fully_shard,
    follow_the_parameter,
    split_the_batch,
    split_the_sequence,
)


def _fully_sharded(graph: Graph, mesh: MeshSpec, limits: Limits, leaf: Leaf, choice: Choice) -> Choice:
    if choice.uses("fsdp"):
        return choice
    if leaf.num_bytes < limits.small_leaf_bytes:
        return choice.leave("small", f"{leaf.num_bytes} bytes are below small_leaf_bytes={limits.small_leaf_bytes}")
    scanned = _scanned_dims(graph, leaf)
    rejected: list[str] = []
    legal: list[tuple[bool, int, int]] = []
    for i, size in enumerate(leaf.shape):
        if i in scanned or i in choice.fixed:
            continue
        axes = (*choice.spec[i], "fsdp")
        parts = num_parts(mesh, axes)
        if size % parts:
            rejected.append(f"dim {i} ({size}) over {'*'.join(axes)}={parts}: {_not_divisible(size, parts)}")
        else:
            legal.append((bool(choice.spec[i]), -size, i))
    for reason in rejected:
        choice = choice.reject(reason)
    if not legal:
        return choice.leave(_NOTHING_PLACED, f"no dim can be split over fsdp={mesh.fsdp}")
    shared, _, dim = min(legal)
    also = "*".join(choice.spec[dim])
    which = f"shares the dim with {also}, as no other divides" if shared else "is the largest dim left that divides"
    return choice.place(dim, ("fsdp",), "fully shard", f"dim {dim} ({leaf.shape[dim]}) {which}")


def _scanned_dims(graph: Graph, leaf: Leaf) -> set[int]:
    return {i for i, dim in enumerate(leaf.dims) if any(factor in graph.scanned for factor in dim)}


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
            dim = found[0].dim
            what = (
                f"{_what(graph.leaves[i], dim, graph)} over tensor={mesh.tensor}: it has {ways} of the pieces that the"
            )
            made[i] = made[i].reject(f"{what} axis shares out; each is copied to {mesh.tensor // ways} devices")
            made[i] = made[i].leave("grouped heads", f"{mesh.tensor // ways} devices compute each, for their queries")
    return made


def _conflict(graph: Graph, taken: Sequence[int], places: dict[int, list[_Found]]) -> str:
    path = graph.leaves[taken[0]].path
    if len(places[taken[0]]) > 1:
        return f"it is two dims of {path} at once"
    return f"another dim of {path} is split over tensor"


def _pair_reason(graph: Graph, pair: Pair, leaf: int, found: _Found) -> str:
    what = _what(graph.leaves[leaf], found.dim, graph)
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


def _what(leaf: Leaf, dim: int, graph: Graph) -> str:
    return f"dim {dim} ({_pieces(graph, leaf.dims[dim])})"


def _spec_like(leaf: Leaf, parameter: Leaf, spec: Spec) -> Spec:
    """The spec of a leaf whose dims are some of the parameter's, matched by their factors."""
    unused = list(zip(parameter.dims, spec, strict=True))
    made: list[DimAxes] = []
    for dim in leaf.dims:
        match = next((pair for pair in unused if dim and pair[0] == dim), None)
        made.append(match[1] if match else ())
        if match:
            unused.remove(match)
    return tuple(made)


def _pieces(graph: Graph, dim: Dim) -> str:
    """`768`, or `12 x 64` where the computation takes the dim apart."""
    return " x ".join(str(graph.sizes[factor]) for factor in dim) or "1"


def _not_divisible(size: int, parts: int) -> str:
    return f"{size} does not divide by {parts}; sizes that do: {legal_sizes(size)}"
