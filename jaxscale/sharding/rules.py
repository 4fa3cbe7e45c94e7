"""The rules that choose a spec for every leaf: few, in order, each a pure function of the graph and the mesh.

No rule reads a name. Ties are broken by the first use in the program, then by the dim's index.
"""

import dataclasses
from collections.abc import Callable, Iterable

from jaxscale.mesh import MeshSpec
from jaxscale.sharding.factors import Dim
from jaxscale.sharding.graph import Graph, Leaf
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.pairs import Pair, pairs_of
from jaxscale.sharding.specs import BATCH_AXES, DimAxes, Spec, legal_sizes, num_parts

_NOTHING_PLACED = "whole"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What has been chosen for one leaf so far: the axes of every dim, by which rules, and why not otherwise."""

    spec: Spec
    rules: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

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
        """Whether some dim is split over `axis`."""
        return any(axis in axes for axes in self.spec)


# One choice per leaf of the graph.
Choices = tuple[Choice, ...]
Rule = Callable[[Graph, MeshSpec, Limits, Choices], Choices]


def choose(graph: Graph, mesh: MeshSpec, limits: Limits) -> Choices:
    """Every rule in its order."""
    choices = tuple(Choice(spec=((),) * len(leaf.shape)) for leaf in graph.leaves)
    for rule in RULES:
        choices = rule(graph, mesh, limits, choices)
    return choices


def layers_stay_whole(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """A dim that a scan goes through is never split: each step would have to fetch its slice from another device."""

    def note(leaf: Leaf, choice: Choice) -> Choice:
        for i in sorted(_scanned_dims(graph, leaf)):
            choice = choice.reject(f"dim {i} ({leaf.shape[i]}): a scan goes through it step by step")
        return choice

    if mesh.tensor == mesh.fsdp == 1:
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
        places = _places(graph, pair.factors)
        taken = [i for i, dims in places.items() if len(dims) > 1 or made[i].uses("tensor")]
        for i, dims in places.items():
            dim = dims[0]
            what = f"dim {dim} ({_pieces(graph, graph.leaves[i].dims[dim])})"
            if pair.illegal is not None:
                made[i] = made[i].reject(f"{what} over tensor={mesh.tensor}: {pair.illegal}")
            elif taken:
                made[i] = made[i].reject(f"{what} over tensor: {_conflict(graph, taken, places, made)}")
            else:
                made[i] = made[i].place(dim, ("tensor",), "columns then rows", _pair_reason(graph, pair, i, dim))
    return tuple(made)


def vocabulary(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
    """Rows that the batch looks up, and outputs over the same, are split over `tensor`.

    Reference: Shoeybi et al. 2019 (Megatron-LM), section 3, https://arxiv.org/abs/1909.08053
    """
    if mesh.tensor == 1:
        return choices

    def split(leaf: Leaf, choice: Choice) -> Choice:
        found = [i for i, dim in enumerate(leaf.dims) if dim and dim[0] in graph.looked_up]
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
        if leaf.role != "optimizer" or leaf.follows is None:
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
    """The examples of a batch, its leaves' leading dim, are split over every axis but `tensor` and `stage`."""
    axes = tuple(axis for axis in BATCH_AXES if mesh.sizes[axis] > 1)

    def split(leaf: Leaf, choice: Choice) -> Choice:
        if leaf.role != "batch" or not leaf.shape or not axes:
            return choice
        return choice.place(0, axes, "batch", "dim 0 holds the examples")

    return tuple(split(leaf, choice) for leaf, choice in zip(graph.leaves, choices, strict=True))


RULES: tuple[Rule, ...] = (
    layers_stay_whole,
    columns_then_rows,
    vocabulary,
    fully_shard,
    follow_the_parameter,
    split_the_batch,
)


def _fully_sharded(graph: Graph, mesh: MeshSpec, limits: Limits, leaf: Leaf, choice: Choice) -> Choice:
    if leaf.num_bytes < limits.small_leaf_bytes:
        return choice.leave("small", f"{leaf.num_bytes} bytes are below small_leaf_bytes={limits.small_leaf_bytes}")
    scanned = _scanned_dims(graph, leaf)
    rejected: list[str] = []
    legal: list[tuple[bool, int, int]] = []
    for i, size in enumerate(leaf.shape):
        if i in scanned:
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
    which = "shares the dim with tensor, as no other divides" if shared else "is the largest dim left that divides"
    return choice.place(dim, ("fsdp",), "fully shard", f"dim {dim} ({leaf.shape[dim]}) {which}")


def _scanned_dims(graph: Graph, leaf: Leaf) -> set[int]:
    return {i for i, dim in enumerate(leaf.dims) if any(factor in graph.scanned for factor in dim)}


def _places(graph: Graph, factors: Dim) -> dict[int, list[int]]:
    """The dims, by parameter, that begin with `factors`."""
    places: dict[int, list[int]] = {}
    for i, leaf in enumerate(graph.leaves):
        dims = [j for j, dim in enumerate(leaf.dims) if dim[: len(factors)] == factors]
        if leaf.role == "parameter" and dims:
            places[i] = dims
    return places


def _conflict(graph: Graph, taken: Iterable[int], places: dict[int, list[int]], choices: list[Choice]) -> str:
    first = next(iter(taken))
    path = graph.leaves[first].path
    if len(places[first]) > 1:
        return f"it is two dims of {path} at once"
    return f"another dim of {path} is split over tensor"


def _pair_reason(graph: Graph, pair: Pair, leaf: int, dim: int) -> str:
    what = f"dim {dim} ({_pieces(graph, graph.leaves[leaf].dims[dim])})"
    uses = [c for c in graph.contractions if leaf in c.left.parameters or leaf in c.right.parameters]
    if any(pair.factors[0] in c.contracted for c in uses):
        return f"{what} is contracted here, after the matmul that makes it (rows)"
    if any(pair.factors[0] in c.factors for c in uses):
        return f"{what} is made here and contracted by a later matmul (columns)"
    return f"{what} goes along with columns that are split"


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
