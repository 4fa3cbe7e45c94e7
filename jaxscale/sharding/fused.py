"""Finds the parameters whose dim holds several parts side by side: what one matmul makes and the program takes apart.

No spec on such a leaf is right, as a contiguous cut runs across the parts; a stored layout (see `layouts`) is.
"""

import dataclasses

from jaxscale.sharding.factors import Dim
from jaxscale.sharding.graph import Concatenation, Graph
from jaxscale.sharding.layouts import StoredLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedDim:
    """One dim of a parameter that is several parts, one after the other.

    Attributes:
      leaf: the parameter's position among the graph's leaves.
      dim: which of its dims.
      parts: the sizes of the parts, in their order; they add up to the dim.
      factors: of every part, most significant first: a layout suits a plan that splits the first of each.
    """

    leaf: int
    dim: int
    parts: tuple[int, ...]
    factors: tuple[Dim, ...]

    def layout(self, graph: Graph, num_shards: int) -> StoredLayout:
        """The layout that deals the parts out to the devices.

        Raises:
          UsageError: a part does not divide by `num_shards`.
        """
        shape = graph.leaves[self.leaf].shape
        return StoredLayout(logical_shape=shape, dim=self.dim, parts=self.parts, num_shards=num_shards)


def fused_dims(graph: Graph) -> tuple[FusedDim, ...]:
    """The parameters' dims that are several parts and that a matmul with data makes, or that are added to such.

    What parts there are is read off the program: where it splits, slices or indexes what came of the dim. A dim that
    is cut in several ways, or again after the first cut, has the parts of all the cuts.
    """
    columns = _columns(graph)
    found = []
    for i, leaf in enumerate(graph.leaves):
        for j, dim in enumerate(leaf.dims if leaf.role == "parameter" else ()):
            pieces = _pieces(graph, dim) if dim and dim[0] in columns else [dim]
            if len(pieces) > 1:
                sizes = tuple(graph.dim_size(piece) for piece in pieces)
                found.append(FusedDim(leaf=i, dim=j, parts=sizes, factors=tuple(pieces)))
    return tuple(found)


def _columns(graph: Graph) -> set[int]:
    """Factors that a matmul of data with a parameter puts in the place of those it contracts."""
    return {
        factor
        for c in graph.contractions
        for mine, other in ((c.left, c.right), (c.right, c.left))
        if other.is_data and not mine.is_data
        for factor in mine.free
    }


def _pieces(graph: Graph, dim: Dim) -> list[Dim]:
    """The parts of a dim, each as its factors; the dim alone where nothing takes it apart."""
    cuts = [c for c in graph.concatenations if c.dim and dim[: len(c.dim)] == c.dim]
    if not cuts:
        return [dim]
    # Where the dim is cut in several ways the finest counts: it has all the boundaries, or none is a layout.
    finest: Concatenation = max(cuts, key=lambda cut: len(cut.parts))
    minor = dim[len(finest.dim) :]
    return [piece for part in finest.parts for piece in _pieces(graph, (*part, *minor))]
