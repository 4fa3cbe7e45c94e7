"""How a plan splits every value of a gradient's program: the axes of its leaves, carried along the factors of dims.

The walk is that of `sharding.trace`, over the backward pass too. Two kinds of splits are told apart:

* a value is *split* over an axis while it is computed with: a batch dim over the batch's axes, a dim that a parameter
  has over `tensor` or `expert`, wherever that dim goes;
* a parameter, what is made of it alone, and its finished gradient are moreover *stored* split over the other axes of
  the parameter's spec (`fsdp`), and gathered where they meet the batch, or before the program begins.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxscale.cost.gathered import Gathered
from jaxscale.mesh import AXES, MeshSpec, axis_of
from jaxscale.sharding import jaxprs
from jaxscale.sharding.factors import Dim
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan, While
from jaxscale.sharding.notes import Notes
from jaxscale.sharding.plan import PlannedLeaf
from jaxscale.sharding.primitives import RULES, Value, links_nothing
from jaxscale.sharding.specs import DimAxes, bounds, merged, num_parts, overlap, part

# Axes over which a parameter's parts are computed with as they are; over all others it is gathered first.
_COMPUTED_WITH = ("expert", "tensor")
# A variable is known by the address of the equation that holds its program, () for the outermost, and by itself.
Key = tuple[Address, Any]


@dataclasses.dataclass(frozen=True)
class Split:
    """How one value is split: the axes of every dim.

    Attributes:
      dims: while it is computed with.
      stored: over and above, while it is only kept; empty but for what is made of one parameter alone.
      gathered: whether it is made of a parameter that was gathered before the program begins.
    """

    dims: tuple[DimAxes, ...]
    stored: DimAxes = ()
    gathered: bool = False

    @property
    def axes(self) -> DimAxes:
        """All axes of `dims`."""
        return tuple(axis for axes in self.dims for axis in axes)


class Placement:
    """The splits of all values of one program on one mesh."""

    def __init__(
        self,
        mesh: MeshSpec,
        splits: dict[Key, Split],
        data: frozenset[Key],
        gradients: dict[Key, int],
        gathered: Gathered,
    ):
        """Made by `place`.

        Args:
          mesh: of the plan.
          splits: by variable.
          data: the variables that depend on the batch.
          gradients: the variables that are a parameter's gradient but for its form, with the parameter's position.
          gathered: the parameters that are gathered before the program begins.
        """
        self.mesh = mesh
        self.gathered = gathered
        self._splits = splits
        self._data = data
        self._gradients = gradients

    def split(self, path: Address, variable: Any) -> Split:
        """How a variable of the program at `path` is split; literals are whole."""
        whole = Split(dims=((),) * len(jaxprs.shape_of(variable)))
        return whole if jaxprs.is_literal(variable) else self._splits.get((path, variable), whole)

    def is_data(self, path: Address, variable: Any) -> bool:
        """Whether a variable depends on the batch."""
        return not jaxprs.is_literal(variable) and (path, variable) in self._data

    def is_gathered(self, path: Address, variable: Any) -> bool:
        """Whether a variable is made of a parameter that was gathered before the program begins."""
        return self.split(path, variable).gathered

    def gradient_of(self, path: Address, variable: Any) -> int | None:
        """The position of the parameter that a variable is the gradient of."""
        return None if jaxprs.is_literal(variable) else self._gradients.get((path, variable))

    def ways(self, axes: DimAxes) -> int:
        """The number of parts that a split over `axes` makes."""
        return num_parts(self.mesh, axes)

    def bytes_of(self, path: Address, variable: Any, *, kept: bool = False) -> int:
        """The bytes of a device's part.

        Args:
          path: of the program that has the variable.
          variable: of it.
          kept: while it is kept, and not computed with.
        """
        split = self.split(path, variable)
        axes = (*split.axes, *split.stored) if kept else split.axes
        return -(-num_bytes(variable) // self.ways(axes))


def num_bytes(variable: Any) -> int:
    """The bytes of a whole array; 8 for a random key, 0 for what has no dtype."""
    dtype = getattr(variable.aval, "dtype", None)
    return math.prod(jaxprs.shape_of(variable)) * getattr(dtype, "itemsize", 8 if dtype is not None else 0)


def place(
    program: Program, mesh: MeshSpec, leaves: Sequence[PlannedLeaf], *, gathered: Gathered | None = None
) -> Placement:
    """Splits all values of a loss's, or a gradient's, program as the plan splits its leaves.

    Args:
      program: as `programs.gradient_program` makes it: its outputs after the first are the parameters' gradients.
      mesh: of the plan.
      leaves: of its inputs: the parameters, then the batch.
      gathered: the parameters that are gathered before the program begins; their gradients are stored in parts.
    """
    walk = _Walk(leaves)
    # Of a microbatch's program the batch is smaller than the plan's.
    shapes = [jaxprs.shape_of(variable) for variable in program.inputs]
    inputs = [
        walk.value(shape, is_data=leaf.role == "batch", origin=i)
        for i, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True))
    ]
    walk.run(program, inputs, ())
    gathered = gathered or {}
    resolved = _Resolved(walk, mesh, inputs, gathered)
    gradients: dict[Key, int] = {}
    num_params = sum(leaf.role == "parameter" for leaf in leaves)
    if len(program.outputs) == num_params + 1:
        _find_gradients(program, (), [None, *range(num_params)], gradients)
    splits = {}
    for key, value in walk.values.items():
        split = resolved.split(value)
        of = gradients.get(key)
        if of is not None and value.is_data:
            split = dataclasses.replace(split, stored=resolved.stored_axes(of, split))
        splits[key] = split
    data = frozenset(key for key, value in walk.values.items() if value.is_data)
    return Placement(mesh, splits, data, gradients, gathered)


class _Walk:
    """Links the dims of all values of a program, and keeps them by variable."""

    def __init__(self, leaves: Sequence[PlannedLeaf]):
        self.leaves = leaves
        self.values: dict[Key, Value] = {}
        self.notes = Notes()
        self._num_values = 0

    def value(
        self, shape: tuple[int, ...], dims: Any = None, *, is_data: bool = False, origin: int | None = None
    ) -> Value:
        """A new value; of a parameter, `origin` is its position."""
        self._num_values += 1
        origins = frozenset[int]() if origin is None or is_data else frozenset({origin})
        dims = self.notes.factors.new_dims(shape) if dims is None else dims
        return Value(number=self._num_values, shape=shape, dims=dims, is_data=is_data, origins=origins)

    def run(self, program: Program, arguments: Sequence[Value], path: Address) -> list[Value]:
        """Walks a program on its arguments."""
        self.values.update(((path, variable), value) for variable, value in zip(program.inputs, arguments, strict=True))
        for constant in program.constants:
            self.values[(path, constant)] = self.value(jaxprs.shape_of(constant))

        def read(variable: Any) -> Value:
            known = None if jaxprs.is_literal(variable) else self.values.get((path, variable))
            return known or self.value(jaxprs.shape_of(variable))

        for position, equation in enumerate(program.equations):
            made = self._apply(equation, [read(variable) for variable in equation.inputs], (*path, position))
            for variable, value in zip(equation.outputs, made, strict=True):
                self.values[(path, variable)] = value
        return [read(variable) for variable in program.outputs]

    def _apply(self, equation: Equation, inputs: list[Value], path: Address) -> list[Value]:
        match jaxprs.inner(equation):
            case Scan() as scan:
                return self._scan(scan, inputs, path)
            case While() as loop:
                first = loop.num_cond_consts + loop.num_body_consts
                return self._loop(loop.body, inputs[loop.num_cond_consts : first], inputs[first:], [], path)[0]
            case Branches(branches):
                made = [self.run(branch, inputs[1:], (*path, i)) for i, branch in enumerate(branches)]
                return [self._either(*values) for values in zip(*made, strict=True)]
            case Call(program):
                return self.run(program, inputs, path)
        dims = RULES.get(equation.name, links_nothing)(self.notes, equation, inputs)
        is_data = any(value.is_data for value in inputs)
        origins = frozenset[int]().union(*(v.origins for v in inputs if v.shape)) if not is_data else frozenset[int]()
        return [
            dataclasses.replace(self.value(shape, mine, is_data=is_data), origins=origins)
            for shape, mine in zip(equation.output_shapes, dims, strict=True)
        ]

    def _scan(self, scan: Scan, inputs: list[Value], path: Address) -> list[Value]:
        given = scan.num_consts + scan.num_carry
        steps = self.notes.factors.new_dim(scan.length)
        slices = [dataclasses.replace(v, shape=v.shape[1:], dims=v.dims[1:]) for v in inputs[given:]]
        for value in inputs[given:]:
            self.notes.factors.link(steps, value.dims[0])
        consts, carry = inputs[: scan.num_consts], inputs[scan.num_consts : given]
        carried, made = self._loop(scan.body, consts, carry, slices, path)
        return [
            *carried,
            *(dataclasses.replace(v, shape=(scan.length, *v.shape), dims=(steps, *v.dims)) for v in made),
        ]

    def _loop(
        self, body: Program, consts: list[Value], carry: list[Value], slices: list[Value], path: Address
    ) -> tuple[list[Value], list[Value]]:
        while True:
            made = self.run(body, [*consts, *carry, *slices], path)
            carried = [self._either(old, new) for old, new in zip(carry, made, strict=False)]
            if all((a.is_data, a.origins) == (b.is_data, b.origins) for a, b in zip(carry, carried, strict=True)):
                return carried, made[len(carry) :]
            carry = carried

    def _either(self, first: Value, *others: Value) -> Value:
        for other in others:
            for mine, theirs in zip(first.dims, other.dims, strict=True):
                self.notes.factors.link(mine, theirs)
        is_data = any(v.is_data for v in (first, *others))
        origins = frozenset[int]() if is_data else first.origins.union(*(v.origins for v in others))
        return dataclasses.replace(self.value(first.shape, first.dims, is_data=is_data), origins=origins)


class _Resolved:
    """What the factors say in the end: which axes each of them is split over."""

    def __init__(self, walk: _Walk, mesh: MeshSpec, inputs: Sequence[Value], gathered: Gathered):
        self._factors, self._leaves, self._inputs, self._mesh = walk.notes.factors, walk.leaves, inputs, mesh
        self._gathered = gathered
        # The axes of a factor, and those of a leaf's dims over which it is only stored.
        self._axes: dict[int, DimAxes] = {}
        self._stored: list[list[DimAxes]] = []
        for leaf, value in zip(walk.leaves, inputs, strict=True):
            self._stored.append([self._take(leaf, value, dim) for dim in range(len(leaf.shape))])

    def split(self, value: Value) -> Split:
        """Each axis splits the first dim that has it; a second dim with it stays whole."""
        taken: list[str] = []
        dims: list[DimAxes] = []
        # A parameter is split as it is stored, even where another's dim of the same factor is split further.
        origins = [] if value.is_data else [self._leaves[i] for i in value.origins]
        of = {axis_of(axis) for leaf in origins for axes in leaf.spec for axis in axes} if origins else set(AXES)
        for dim in value.dims:
            axes = [axis for factor in self._factors.resolve(dim) for axis in self._axes.get(factor, ())]
            axes = [axis for axis in axes if axis_of(axis) in of]
            mine = [axis for axis in axes if not any(overlap(self._mesh, axis, other) for other in taken)]
            taken += mine
            dims.append(merged(self._mesh, mine))
        split = Split(dims=tuple(dims))
        if value.is_data or len(value.origins) != 1:
            return split
        (origin,) = value.origins
        if origin in self._gathered:
            return dataclasses.replace(split, gathered=True)
        return dataclasses.replace(split, stored=self._stored_axes(origin, value, split))

    def stored_axes(self, parameter: int, split: Split) -> DimAxes:
        """The axes over which a parameter's gradient is stored, besides those it is computed with."""
        used = {axis_of(axis) for axis in split.axes}
        return tuple(axis for axes in self._stored[parameter] for axis in axes if axis_of(axis) not in used)

    def _stored_axes(self, parameter: int, value: Value, split: Split) -> DimAxes:
        """Those of the dims of the parameter that the value still has."""
        leaf = [self._factors.resolve(dim) for dim in self._inputs[parameter].dims]
        mine = {factor for dim in value.dims for factor in self._factors.resolve(dim)}
        kept = [axes for dim, axes in zip(leaf, self._stored[parameter], strict=True) if mine.intersection(dim)]
        used = {axis_of(axis) for axis in split.axes}
        return tuple(axis for axes in kept for axis in axes if axis_of(axis) not in used)

    def _take(self, leaf: PlannedLeaf, value: Value, dim: int) -> DimAxes:
        """Notes the axes that a leaf's dim gives to its leading factors; returns those it is only stored over."""
        axes = tuple(axis for axis in leaf.spec[dim] if self._mesh.sizes[axis_of(axis)] > 1)
        is_batch = leaf.role == "batch"
        computed = tuple(axis for axis in axes if is_batch or axis_of(axis) in _COMPUTED_WITH)
        self._spread(self._factors.resolve(value.dims[dim]), computed)
        return tuple(axis for axis in axes if axis not in computed)

    def _spread(self, factors: Dim, axes: DimAxes) -> None:
        """Gives axes, or parts of them, to factors, most significant first, as many ways as each has left."""
        pending, dealt = list(factors), dict[int, DimAxes]()
        left = self._factors.size(pending[0]) if pending else 1
        for axis in axes:
            start, end = bounds(self._mesh, axis)
            while pending and start < end:
                if left == 1:
                    pending.pop(0)
                    left = self._factors.size(pending[0]) if pending else 1
                    continue
                ways = math.gcd(left, end // start)
                if ways == 1:
                    break
                mine = part(self._mesh, axis_of(axis), start, start * ways)
                dealt[pending[0]] = (*dealt.get(pending[0], ()), mine)
                start, left = start * ways, left // ways
        for factor, mine_too in dealt.items():
            self._axes.setdefault(factor, mine_too)


# Operations whose output is a gradient where an input of its size is that gradient, in another form.
_SAME_GRADIENT = frozenset(
    {"add_any", "convert_element_type", "copy", "div", "mul", "neg", "reshape", "squeeze", "transpose"}
)


def _find_gradients(program: Program, path: Address, outputs: Sequence[int | None], found: dict[Key, int]) -> None:
    """Goes back from the gradients that a program returns to where they are made."""
    for variable, parameter in zip(program.outputs, outputs, strict=True):
        if parameter is not None and not jaxprs.is_literal(variable):
            found.setdefault((path, variable), parameter)
    for position in reversed(range(len(program.equations))):
        equation = program.equations[position]
        wanted = [found.get((path, variable)) for variable in equation.outputs]
        if any(parameter is not None for parameter in wanted):
            _find_in(equation, (*path, position), path, wanted, found)


def _find_in(
    equation: Equation, inner_path: Address, path: Address, wanted: list[int | None], found: dict[Key, int]
) -> None:
    match jaxprs.inner(equation):
        case Scan() as scan:
            _find_gradients(scan.body, inner_path, wanted, found)
            carried = equation.inputs[scan.num_consts : scan.num_consts + scan.num_carry]
            inside = scan.body.inputs[scan.num_consts : scan.num_consts + scan.num_carry]
            for outer, variable, parameter in zip(carried, inside, wanted, strict=False):
                if parameter is not None:
                    found.setdefault((inner_path, variable), parameter)
                    if not jaxprs.is_literal(outer):
                        found.setdefault((path, outer), parameter)
        case Call(program):
            _find_gradients(program, inner_path, wanted, found)
            for outer, variable in zip(equation.inputs, program.inputs, strict=True):
                if (inner_path, variable) in found and not jaxprs.is_literal(outer):
                    found.setdefault((path, outer), found[(inner_path, variable)])
        case Branches(branches):
            for i, branch in enumerate(branches):
                _find_gradients(branch, (*inner_path, i), wanted, found)
        case None if equation.name in _SAME_GRADIENT:
            size = math.prod(equation.output_shapes[0])
            for variable in equation.inputs:
                if (
                    not jaxprs.is_literal(variable)
                    and math.prod(jaxprs.shape_of(variable)) == size
                    and wanted[0] is not None
                ):
                    found.setdefault((path, variable), wanted[0])
