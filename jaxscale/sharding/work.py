"""How often the devices together compute what is to be computed once: every matmul's FLOPs, whole and per device."""

import dataclasses
from collections.abc import Mapping

from jaxscale.mesh import MeshSpec
from jaxscale.sharding.factors import Dim
from jaxscale.sharding.graph import Contraction, Graph
from jaxscale.sharding.specs import num_parts
from jaxscale.sharding.splits import Splits, deal, split_ways


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One contraction of the forward pass.

    Attributes:
      contraction: its position among the graph's.
      num_flops: of all its runs, each computed once.
      num_copies: how many devices compute the same part of it.
    """

    contraction: int
    num_flops: int
    num_copies: int


def work_of(
    graph: Graph, mesh: MeshSpec, splits: Splits, elsewise: Mapping[int, Splits] | None = None
) -> tuple[Work, ...]:
    """The work of every contraction that depends on the batch.

    The backward pass does each of them twice more, split in the same way, so that ratios are those of a whole step.
    A slice of a split dim (every second example, all positions but the last) counts as split where it divides, as the
    compiler keeps it where it is. What comes out of a primitive that is not understood, and what `shard_map` computes,
    is not counted.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      splits: what its factors are computed over.
      elsewise: by the position of a contraction, what it alone is computed over besides; see `exchanges`.
    """
    splits = {**_of_slices(graph, mesh, splits), **splits}
    work = []
    for i, c in enumerate(graph.contractions):
        is_unknown = any(factor in graph.unknown and factor not in splits for factor in c.factors)
        if (c.left.is_data or c.right.is_data) and not c.is_manual and not is_unknown:
            mine = {**splits, **(elsewise or {}).get(i, {})}
            num_copies = mesh.num_devices // num_parts(mesh, split_ways(mesh, _in_order(c), mine))
            work.append(Work(contraction=i, num_flops=c.num_flops * c.num_runs, num_copies=num_copies))
    return tuple(work)


def flops_ratio(work: tuple[Work, ...]) -> float:
    """The FLOPs of all devices over the FLOPs to be done; 1 where there are none."""
    total = sum(one.num_flops for one in work)
    return sum(one.num_flops * one.num_copies for one in work) / total if total else 1.0


def _in_order(c: Contraction) -> Dim:
    return (*c.batch, *c.contracted, *c.left.free, *c.right.free)


def _of_slices(graph: Graph, mesh: MeshSpec, splits: Splits) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    known = dict(splits)
    for _ in range(2):  # A slice of a slice, and what is joined from slices.
        for pair in graph.slices:
            for mine, theirs in (pair, pair[::-1]):
                axes = split_ways(mesh, theirs, known)
                if mine and axes and mine[0] not in known:
                    dealt = deal(graph, mesh, mine, axes)
                    if num_parts(mesh, split_ways(mesh, dealt, dealt)) == num_parts(mesh, axes):
                        found.update(dealt)
                        known.update(dealt)
    return found
