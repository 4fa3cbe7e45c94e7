"""The rules that choose a spec for every leaf: few, in order, each a pure function of the graph and the mesh.

No rule reads a name. Ties are broken by the first use in the program, then by the dim's index.
"""

import dataclasses

from jaxscale.mesh import MeshSpec
from jaxscale.sharding.choices import Choice, Choices, Rule, not_divisible, what_is
from jaxscale.sharding.experts import expert_factors, leaves_with_free
from jaxscale.sharding.graph import Graph, Leaf
from jaxscale.sharding.layouts import StoredLayout
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import BATCH_AXES, num_parts
from jaxscale.sharding.tensor_rules import columns_then_rows, fused_projection, vocabulary

_NOTHING_PLACED = "whole"


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
    """Optimizer state made from one parameter's gradient is split and stored as that parameter is, dim by dim."""

    def follow(leaf: Leaf, choice: Choice) -> Choice:
        if leaf.role != "optimizer" or leaf.follows is None or choice.fixed:
            return choice
        parameter, theirs = graph.leaves[leaf.follows], choices[leaf.follows]
        matches = _matches(leaf, parameter)
        return dataclasses.replace(
            choice,
            spec=tuple(() if dim is None else theirs.spec[dim] for dim in matches),
            layout=_layout_like(leaf, matches, theirs.layout),
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
            why = not_divisible(size, mesh.sequence)
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
            return choice.reject(f"{what_is(leaf, dim, graph)} over expert: what routes is computed with the examples")
        if size % mesh.expert:
            why = not_divisible(size, mesh.expert)
            return choice.reject(f"{what_is(leaf, dim, graph)} over expert={mesh.expert}: {why}")
        return choice.place(dim, ("expert",), "experts", f"{what_is(leaf, dim, graph)} is what the batch is routed to")

    return tuple(split(i, leaf, choice) for i, (leaf, choice) in enumerate(zip(graph.leaves, choices, strict=True)))


RULES: tuple[Rule, ...] = (
    layers_stay_whole,
    experts,
    columns_then_rows,
    fused_projection,
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
            rejected.append(f"dim {i} ({size}) over {'*'.join(axes)}={parts}: {not_divisible(size, parts)}")
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


def _matches(leaf: Leaf, parameter: Leaf) -> list[int | None]:
    """For every dim of a leaf the dim of the parameter that it is, told by its factors; None where it is none."""
    unused = list(range(len(parameter.dims)))
    made: list[int | None] = []
    for dim in leaf.dims:
        match = next((i for i in unused if dim and parameter.dims[i] == dim), None)
        made.append(match)
        if match is not None:
            unused.remove(match)
    return made


def _layout_like(leaf: Leaf, matches: list[int | None], layout: StoredLayout | None) -> StoredLayout | None:
    """The layout of a leaf that has the dim which the parameter's layout is of; None where it does not."""
    if layout is None or layout.dim not in matches:
        return None
    return dataclasses.replace(layout, logical_shape=leaf.shape, dim=matches.index(layout.dim))
