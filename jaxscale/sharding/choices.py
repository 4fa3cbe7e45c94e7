"""What the rules choose, leaf by leaf, and how they speak of dims."""

import dataclasses
from collections.abc import Callable

from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding.factors import Dim
from jaxscale.sharding.graph import Graph, Leaf
from jaxscale.sharding.layouts import StoredLayout
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import DimAxes, Spec, legal_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What has been chosen for one leaf so far: the axes of every dim, by which rules, and why not otherwise."""

    spec: Spec
    rules: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    # Dims that a user's pin decides.
    fixed: frozenset[int] = frozenset()
    # In which order it is stored, where that is not the logical one.
    layout: StoredLayout | None = None

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


def what_is(leaf: Leaf, dim: int, graph: Graph) -> str:
    """A dim for people: its position, and its size or sizes."""
    return f"dim {dim} ({_pieces(graph, leaf.dims[dim])})"


def _pieces(graph: Graph, dim: Dim) -> str:
    """`768`, or `12 x 64` where the computation takes the dim apart."""
    return " x ".join(str(graph.sizes[factor]) for factor in dim) or "1"


def not_divisible(size: int, parts: int) -> str:
    """Why a dim of `size` can't be shared by `parts` devices, and by how many it could be."""
    return f"{size} does not divide by {parts}; sizes that do: {legal_sizes(size)}"
