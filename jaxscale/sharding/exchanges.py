"""Tokens on their way to the experts and back, by matmuls with a one-hot: in parts, where the copies would cost much.

Every device of `tensor` has the tokens whole and a part of every expert, so each of them sends the tokens for itself.
That moves nothing, and is the work of one device done by all. In proportion to the experts' own it grows with the size
of a group. Above the limit the tokens are sent in parts of their width: what experts read is then gathered, what they
make is added up and scattered, and what comes back is gathered.

What experts make can also come back in parts while tokens are sent whole. Experts whose hidden dim is split make
partial sums of all their places, M elements. Whole, they are scattered and gathered: 2 M. In parts they are scattered
(M) and combined, and the O elements of that are gathered; the backward pass gathers their gradient (M), and adds up
that of the weights that combined them (2 W). Where it computes the sums again it adds them up again, whole (2 M) or in
parts (M), and does not combine them. So whole sums move 4 M then, and parts 3 M + O + 2 W; where the forward pass keeps
the sums, whole ones move 2 M, and parts 2 M + O + 2 W, all of it times 1 - 1/t on `tensor=t`. Where experts are split
over `expert=e` too, each sum comes back to the examples and its gradient goes out: (1 - 1/e) M whole, 1/t of it in
parts.
"""

from collections.abc import Mapping

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.experts import expert_factors
from jaxscale.sharding.graph import Contraction, Graph, Operand
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.splits import Splits
from jaxscale.sharding.work import work_of

# By the position of a contraction: what it is computed over that the same factors elsewhere are not.
Exchanges = Mapping[int, Splits]


def exchanges_of(graph: Graph, mesh: MeshSpec, splits: Splits, limits: Limits) -> Exchanges:
    """The contractions that send tokens to experts or back in parts; none where whole ones repeat little work.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      splits: what its factors are computed over.
      limits: how much work may be repeated.
    """
    experts = expert_factors(graph)
    if mesh.tensor == 1 or not experts:
        return {}
    widths = _widths(graph, experts, splits)
    found = {
        i: local
        for i, c in enumerate(graph.contractions)
        if (local := _in_parts(graph, mesh, c, experts, widths, splits))
    }
    work = work_of(graph, mesh, splits)
    total = sum(one.num_flops for one in work)
    repeated = sum(one.num_flops * (one.num_copies - 1) for one in work if one.contraction in found)
    return found if repeated > (limits.max_flops_ratio - 1) * total else {}


def returns_of(graph: Graph, mesh: MeshSpec, splits: Splits) -> Exchanges:
    """The contractions that combine what experts make in parts of its width, because that moves less.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      splits: what its factors are computed over.
    """
    experts = expert_factors(graph)
    if mesh.tensor == 1 or not experts:
        return {}
    widths = _widths(graph, experts, splits)
    sums = [
        c.outputs
        for c in graph.contractions
        if is_of_experts(c, experts) and any(_is_split(factor, splits) for factor in c.contracted)
    ]
    return {
        i: local
        for i, c in enumerate(graph.contractions)
        if not experts.isdisjoint(c.contracted)
        and (local := _in_parts(graph, mesh, c, experts, widths, splits))
        and _factors(_made(c, local)) in sums
        and moves_less_in_parts(mesh, c, _made(c, local))
    }


def moves_less_in_parts(mesh: MeshSpec, c: Contraction, made: Operand) -> bool:
    """Whether what experts make moves less where it is combined in parts; see the head of this module.

    Args:
      mesh: with every size resolved.
      c: combines what experts make.
      made: the one of its operands that experts made.
    """
    weights = c.right if made is c.left else c.left
    num_again = 1 if c.is_recomputed else 0
    saved = (num_again + (2 + num_again) * (1 - 1 / mesh.expert)) * made.num_elements
    return c.num_outputs + 2 * weights.num_elements < saved


def is_of_experts(c: Contraction, experts: frozenset[int]) -> bool:
    """Whether a contraction is each expert's own matmul with its parameters."""
    return c.is_of_parameters and not experts.isdisjoint(c.batch)


def _widths(graph: Graph, experts: frozenset[int], splits: Splits) -> frozenset[int]:
    """What experts read and make of every token, which no device has a part of."""
    found: set[int] = set()
    for c in graph.contractions:
        if is_of_experts(c, experts):
            parameter = c.right if c.left.is_data else c.left
            found.update((*c.contracted, *parameter.free))
    return frozenset(factor for factor in found if not _is_split(factor, splits))


def _in_parts(
    graph: Graph, mesh: MeshSpec, c: Contraction, experts: frozenset[int], widths: frozenset[int], splits: Splits
) -> dict[int, tuple[str, ...]]:
    sends = c.left.is_data and c.right.is_data and not experts.isdisjoint(c.factors)
    if not sends or any(_is_split(factor, splits) for factor in c.factors):
        return {}
    free = [f for f in (*c.left.free, *c.right.free) if f in widths and graph.sizes[f] % mesh.tensor == 0]
    return {free[0]: ("tensor",)} if free else {}


def _made(c: Contraction, local: Splits) -> Operand:
    """The operand that has the width, of a contraction that combines what experts make."""
    return c.right if set(local).isdisjoint(c.left.free) else c.left


def _factors(operand: Operand) -> frozenset[int]:
    return frozenset(factor for dim in operand.dims for factor in dim)


def _is_split(factor: int, splits: Splits) -> bool:
    return any(axis_of(axis) == "tensor" for axis in splits.get(factor, ()))
