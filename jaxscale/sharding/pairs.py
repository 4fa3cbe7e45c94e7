"""Candidates for `tensor`: what one matmul with a parameter makes and a later one contracts, cheapest first."""

import dataclasses
from collections.abc import Mapping

from jaxscale.sharding.factors import Dim
from jaxscale.sharding.fused import FusedDim, fused_dims
from jaxscale.sharding.graph import Contraction, Graph
from jaxscale.sharding.specs import legal_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Leading factors of dims that are made by one matmul and contracted by the next."""

    # Most significant first; more than one where the first alone has fewer pieces than the axis has devices.
    factors: Dim
    # How many ways each of them is cut, in the same order; () where they can't be.
    ways: tuple[int, ...]
    # Why they can't be cut that many ways; None where they can.
    illegal: str | None


def pairs_of(graph: Graph, num_parts: int) -> list[Pair]:
    """The candidates for an axis of `num_parts` devices, best first.

    Best is the one that moves the fewest values per FLOP that it splits; ties go to the one used first.
    """
    dealt = _dealt_out(graph, num_parts)
    made = _made_by_parameters(graph).union(*dealt.values())
    eligible = made & _contracted_later(graph)
    candidates: set[Pair] = set()
    for leaf in graph.leaves:
        if leaf.role == "parameter":
            candidates.update(_cut(graph, prefix, num_parts) for dim in leaf.dims if (prefix := _prefix(dim, eligible)))
    # 2 key-value heads can't be shared by 8, but they go along with the 2 x 4 query heads that can.
    longer = {pair.factors[:end] for pair in candidates if pair.ways for end in range(1, len(pair.factors))}
    candidates = {pair for pair in candidates if pair.ways or pair.factors not in longer}
    return sorted(candidates, key=lambda pair: (_moved_per_flop(graph, pair, dealt), _first_use(graph, pair)))


def pairs_of_parts(graph: Graph, fused: FusedDim, num_parts: int) -> list[Pair | None]:
    """What of every part of a fused dim a later matmul contracts, for an axis of `num_parts` devices; None for nothing.

    The dim can be dealt out if every part has some, and that can be cut: columns must be split as the rows are.
    """
    contracted = _contracted_later(graph)
    prefixes = [_prefix(part, contracted) for part in fused.factors]
    return [_cut(graph, prefix, num_parts) if prefix else None for prefix in prefixes]


# By the leading factor of a fused dim, what is split of its parts.
_Dealt = Mapping[int, frozenset[int]]


def _dealt_out(graph: Graph, num_parts: int) -> _Dealt:
    """The fused dims that can be dealt out."""
    dealt: dict[int, frozenset[int]] = {}
    for fused in fused_dims(graph):
        pairs = pairs_of_parts(graph, fused, num_parts)
        if all(pair is not None and pair.ways for pair in pairs):
            leading = graph.leaves[fused.leaf].dims[fused.dim][0]
            dealt[leading] = frozenset(f for pair in pairs if pair is not None for f in pair.factors)
    return dealt


def _contracted_later(graph: Graph) -> set[int]:
    """Factors that the rows of a parameter may be split by: not a head's width, nor what a scan goes through."""
    return _contracted_with_parameters(graph) - _widths(graph) - graph.scanned


def _made_by_parameters(graph: Graph) -> set[int]:
    """Factors that a matmul with a parameter puts in the place of those it contracts: columns."""
    return {f for c in graph.contractions for side in _parameter_side(c) for f in side}


def _contracted_with_parameters(graph: Graph) -> set[int]:
    """Factors that a matmul with a parameter sums over: rows."""
    return {f for c in graph.contractions if _parameter_side(c) for f in c.contracted}


def _parameter_side(contraction: Contraction) -> list[Dim]:
    """The free factors of the one operand that does not depend on the batch; none where both or neither do."""
    left, right = contraction.left, contraction.right
    if left.is_data == right.is_data:
        return []
    return [right.free if left.is_data else left.free]


def _widths(graph: Graph) -> set[int]:
    """Factors such as a head's width, that take part in only some of the contractions of data with data.

    Attention contracts queries with keys, and the weights it makes of that with values. Split by heads, both are
    split. Split by the width of queries, the scores are partial sums; split by that of values, every device computes
    all the scores. Experts that gather the same positions later on read something else than the scores.
    """
    meetings = [c for c in graph.contractions if c.left.is_data and c.right.is_data]
    widths = {f for c in meetings for f in c.contracted}
    for later in meetings:
        for scores, values in ((later.left, later.right), (later.right, later.left)):
            read = {*later.contracted, *scores.free}
            for earlier in meetings:
                if earlier is not later and read <= earlier.outputs:
                    widths |= set(values.free) - earlier.factors
    return widths


def _prefix(dim: Dim, eligible: set[int]) -> Dim:
    end = next((i for i, factor in enumerate(dim) if factor not in eligible), len(dim))
    return dim[:end]


def _cut(graph: Graph, prefix: Dim, num_parts: int) -> Pair:
    """The fewest leading factors that can be cut into `num_parts` equal parts without cutting across a piece."""
    left = num_parts
    ways: list[int] = []
    for end, factor in enumerate(prefix, start=1):
        size = graph.sizes[factor]
        if size % left == 0:
            return Pair(factors=prefix[:end], ways=(*ways, left), illegal=None)
        if left % size:
            break
        ways.append(size)
        left //= size
    pieces = graph.dim_size(prefix)
    why = f"{pieces} pieces can't be shared by {num_parts}; sizes that can: {legal_sizes(pieces)}"
    return Pair(factors=prefix, ways=(), illegal=why)


def _moved_per_flop(graph: Graph, pair: Pair, dealt: _Dealt) -> float:
    """Values that the reductions of a split pair move, in the forward and the backward pass, per FLOP split."""
    # What makes several parts at once makes those of the pair.
    factors = set(pair.factors) | {fused for fused, inside in dealt.items() if inside.intersection(pair.factors)}
    moved = num_flops = 0
    inputs: dict[int, int] = {}
    for c in graph.contractions:
        if factors & c.factors:
            num_flops += c.num_flops * c.num_runs
        if factors.intersection(c.contracted):
            moved += c.num_outputs * c.num_runs
        for side, other in ((c.left, c.right), (c.right, c.left)):
            # The gradient of what columns are multiplied with is a sum over them, once for all that read it.
            if factors.intersection(side.free) and not side.is_data and other.is_data:
                inputs[other.value] = other.num_elements * c.num_runs
    moved += sum(inputs.values())
    moved += sum(r.num_outputs * r.num_runs for r in graph.reductions if factors & r.reduced)
    return moved / num_flops


def _first_use(graph: Graph, pair: Pair) -> tuple[int, int]:
    """The first contraction that a pair takes part in, and its place there; operands are not told apart by side."""
    index = next(i for i, c in enumerate(graph.contractions) if pair.factors[0] in c.factors)
    c = graph.contractions[index]
    data, parameter = (c.left, c.right) if c.left.is_data else (c.right, c.left)
    return index, (*c.batch, *data.free, *c.contracted, *parameter.free).index(pair.factors[0])
