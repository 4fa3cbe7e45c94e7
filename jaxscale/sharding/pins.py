"""What users decide themselves: pins of a leaf's dim, or of every dim linked with it, and rules of their own."""

import dataclasses
from collections.abc import Sequence

from jaxscale.errors import UsageError
from jaxscale.mesh import AXES, MeshSpec, axis_of
from jaxscale.sharding.choices import Choice, Choices, Rule
from jaxscale.sharding.graph import Graph, Leaf, Role
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.rules import RULES
from jaxscale.sharding.specs import DimAxes, bounds, legal_sizes, num_parts, overlap

_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pin:
    """The axes of one dim of one leaf, or of every dim that the computation ties to it; rules decide the others.

    Attributes:
      path: the leaf's, exactly as the plan prints it.
      dim: which of its dims.
      axes: the axes it is split over, outermost first; () to keep it whole.
      role: what the leaf is.
      linked: whether every dim of a parameter that begins with the same factors is pinned too.
      scanned: says that a dim which a scan goes through is to be split all the same.
    """

    path: str
    dim: int
    axes: DimAxes
    role: Role = "parameter"
    linked: bool = False
    scanned: bool = False

    def __str__(self) -> str:
        over = "*".join(self.axes) or "nothing"
        return f"pin of {self.role} {self.path} dim {self.dim} over {over}{' and all linked' * self.linked}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedRule:
    """A rule of the user's and its place: right before the rule of ours that it names.

    Attributes:
      rule: a pure function like those in `rules`, which returns one choice per leaf.
      before: the name of the function it comes before; None to be the last.
    """

    rule: Rule
    before: str | None = None


def pinned(graph: Graph, mesh: MeshSpec, choices: Choices, pins: Sequence[Pin]) -> Choices:
    """The choices with every pin in force.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      choices: one per leaf, nothing placed.
      pins: the user's.

    Raises:
      UsageError: a pin matches no leaf or dim, names an axis that is unknown or of one device, does not divide, splits
        an array twice over one axis, splits what a scan goes through without saying so, or disagrees with another pin.
    """
    made = list(choices)
    by: dict[tuple[int, int], Pin] = {}
    for pin in pins:
        for i, dim in _targets(graph, pin):
            other = by.setdefault((i, dim), pin)
            if other.axes != pin.axes:
                raise UsageError(f"{pin} disagrees with the {other} about dim {dim} of {graph.leaves[i].path}")
            if other is pin:
                _check(graph, mesh, made[i], i, dim, pin)
                placed = made[i].place(dim, pin.axes, "pin", f"dim {dim} is pinned by the user")
                made[i] = dataclasses.replace(placed, fixed=made[i].fixed | {dim})
    return tuple(made)


def in_order(added: Sequence[AddedRule]) -> tuple[Rule, ...]:
    """Our rules with the user's among them.

    Raises:
      UsageError: one is to come before a rule that does not exist.
    """
    order = list(RULES)
    for one in added:
        names = [rule.__name__ for rule in order]
        if one.before is not None and one.before not in names:
            raise UsageError(
                f"rule {one.rule.__name__}: before={one.before!r} is no rule; the rules are {', '.join(names)}"
            )
        order.insert(len(order) if one.before is None else names.index(one.before), _checked(one.rule))
    return tuple(order)


def _checked(rule: Rule) -> Rule:
    """The rule, refused where it changes nothing or gives something that is no choice per leaf."""

    def checked(graph: Graph, mesh: MeshSpec, limits: Limits, choices: Choices) -> Choices:
        made = tuple(rule(graph, mesh, limits, choices))
        if made == choices:
            raise UsageError(
                f"rule {rule.__name__} matched nothing: every choice is as it was before it; remove it or mend it"
            )
        if len(made) != len(choices):
            raise UsageError(
                f"rule {rule.__name__} gave {len(made)} choices for {len(choices)} leaves; return one per leaf"
            )
        return made

    checked.__name__ = rule.__name__
    return checked


def _targets(graph: Graph, pin: Pin) -> list[tuple[int, int]]:
    found = [i for i, leaf in enumerate(graph.leaves) if (leaf.role, leaf.path) == (pin.role, pin.path)]
    if not found:
        paths = [leaf.path for leaf in graph.leaves if leaf.role == pin.role]
        shown = ", ".join(paths[:_MAX_NAMED])
        raise UsageError(f"{pin} matches nothing: there is no {pin.role} {pin.path!r} among {len(paths)}: {shown}...")
    (first,) = found
    leaf = graph.leaves[first]
    if not 0 <= pin.dim < len(leaf.shape):
        raise UsageError(f"{pin} matches nothing: {pin.path} of shape {leaf.shape} has {len(leaf.shape)} dims, from 0")
    targets = [(first, pin.dim)]
    if pin.linked and leaf.dims[pin.dim]:
        targets += [
            (i, dim)
            for i, other in enumerate(graph.leaves)
            for dim, factors in enumerate(other.dims)
            if other.role == "parameter" and factors[:1] == leaf.dims[pin.dim][:1] and (i, dim) != (first, pin.dim)
        ]
    return targets


def _check(graph: Graph, mesh: MeshSpec, choice: Choice, leaf_number: int, dim: int, pin: Pin) -> None:
    leaf: Leaf = graph.leaves[leaf_number]
    where = f"{pin}: {leaf.path} {leaf.shape}"
    for entry in pin.axes:
        if axis_of(entry) not in AXES:
            raise UsageError(f"{where}: unknown axis {entry!r}; the axes are {', '.join(AXES)}")
        _check_part(mesh, entry, where)
        if num_parts(mesh, (entry,)) == 1:
            raise UsageError(
                f"{where}: {entry} splits nothing, for it has one device on mesh {mesh}; take an axis of several "
                "devices, or write axes=() to keep the dim whole"
            )
    if not pin.scanned and pin.axes and any(factor in graph.scanned for factor in leaf.dims[dim]):
        raise UsageError(
            f"{where}: a scan goes through dim {dim} step by step; set scanned=True to split it all the same"
        )
    taken = [entry for axes in choice.spec for entry in axes]
    for i, entry in enumerate(pin.axes):
        for other in (*taken, *pin.axes[:i]):
            if overlap(mesh, entry, other):
                raise UsageError(f"{where}: it is split over {other} already, which shares devices with {entry}")
    parts, size = num_parts(mesh, pin.axes), leaf.shape[dim]
    if size % parts:
        over = "*".join(pin.axes)
        raise UsageError(f"{where}: {size} does not divide by {over}={parts}; sizes that do: {legal_sizes(size)}")


def _check_part(mesh: MeshSpec, entry: str, where: str) -> None:
    axis = axis_of(entry)
    try:
        start, end = bounds(mesh, entry)
        fits = 1 <= start < end and mesh.sizes[axis] % end == 0 and end % start == 0
    except ValueError:
        fits = False
    if not fits and entry != axis:
        raise UsageError(
            f"{where}: {entry!r} is no part of {axis}={mesh.sizes[axis]}; write {axis}[a:b], where a divides b and b "
            "the axis"
        )
