"""Kinds of factors and leaves that the data flow tells: experts that the batch is routed to, heads that are shared."""

from collections.abc import Mapping

from jaxscale.mesh import axis_of
from jaxscale.sharding.graph import Graph
from jaxscale.sharding.specs import DimAxes


def expert_factors(graph: Graph) -> frozenset[int]:
    """Factors that number experts: data meets each with its own part of a parameter, and the batch decides which data.

    A batch factor of a contraction of data with a parameter, along which a scatter, a sort, a choice of the largest or
    a one-hot has put the data. Kernels that merely have one matrix per head are told apart by the second half.
    """
    met = {f for c in graph.contractions if c.is_of_parameters for f in c.batch}
    return frozenset(met & graph.routed) - graph.scanned


def leaves_with_free(graph: Graph, factors: frozenset[int]) -> frozenset[int]:
    """The parameters that make or contract these factors in a matmul with data, as a router makes scores of experts."""
    found: set[int] = set()
    for c in graph.contractions:
        if c.is_of_parameters and factors & (c.factors - set(c.batch)):
            found |= c.left.parameters | c.right.parameters
    return frozenset(found)


def shared_heads(graph: Graph, splits: Mapping[int, DimAxes]) -> frozenset[int]:
    """The parameters that make what all parts of a split operation read: the keys of multi-query attention.

    Contracted data with data, where the other side is split over `tensor` and this side has no factor that could be.
    """
    shared: set[int] = set()
    for c in graph.contractions:
        if not (c.left.is_data and c.right.is_data):
            continue
        for mine, theirs in ((c.left, c.right), (c.right, c.left)):
            split = any(axis_of(a) == "tensor" for f in (*theirs.free, *c.batch) for a in splits.get(f, ()))
            whole = not any(
                axis_of(a) == "tensor" for f in (*mine.free, *c.batch, *c.contracted) for a in splits.get(f, ())
            )
            if split and whole:
                shared |= _makers(graph, _with_parts(graph, {*mine.free, *c.contracted}))
    return frozenset(shared)


def _with_parts(graph: Graph, factors: set[int]) -> set[int]:
    """With what they are cut into and were put together from: rotary positions do both to a head's width."""
    known: set[int] = set()
    while known != factors:
        known = set(factors)
        for c in graph.concatenations:
            parts = {factor for part in c.parts for factor in part}
            # A dim of size 1 has no factor.
            if (c.dim and known.issuperset(c.dim)) or (parts and known.issuperset(parts)):
                factors = factors.union(c.dim, parts)
    return known


def _makers(graph: Graph, factors: set[int]) -> set[int]:
    """The parameters that make all of their results over some of these factors."""
    found: set[int] = set()
    for c in graph.contractions:
        side = c.right if c.left.is_data else c.left
        if c.is_of_parameters and side.free and factors.issuperset(side.free):
            found |= side.parameters
    return found
