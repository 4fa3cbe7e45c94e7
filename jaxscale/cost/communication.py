"""The bytes that a step makes its devices move, by kind of collective and mesh axis.

Counted on the gradient's program, forward and backward pass, with every value split as the plan has it:

* a parameter that is stored split over `fsdp` is gathered where it meets the batch, once per pass through a loop's body
  (so once forward and once backward, and with `remat` not more often than that), unless it was gathered before;
* a sum over a dim that is split leaves partial sums on the devices: they are added up (all_reduce) before anything but
  an addition reads them, or, where the result is split over that very axis, each device gets its part
  (reduce_scatter). A gradient stored over `fsdp` is such a result;
* an operand that is split where the other is not is gathered (keys over `sequence`, the batch's other examples);
* tokens go to experts and come back by an all_to_all.

A reduction over `slice` and other axes together runs inside the slices first and moves only a part over the
data-centre network. What the optimizer's update moves is not counted: elementwise optimizers move nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxscale.cost.placement import Key, Placement, Split, num_bytes
from jaxscale.cost.rings import COLLECTIVE_KINDS, CollectiveKind, ring_bytes
from jaxscale.cost.traffic import Collective, Traffic
from jaxscale.mesh import AXES, axis_of
from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan, While
from jaxscale.sharding.specs import DimAxes

__all__ = ["COLLECTIVE_KINDS", "Collective", "CollectiveKind", "Traffic", "count_traffic", "ring_bytes"]

# The axis whose groups are joined by the data-centre network.
_DCN_AXIS = "slice"
# Operations that hand partial sums on: linear in all of their operands together.
_LINEAR = frozenset(
    {"add", "add_any", "broadcast_in_dim", "copy", "neg", "reduce_sum", "reshape", "squeeze", "sub", "transpose"}
)
# Operations on a parameter alone that are done on the stored parts, before it is gathered.
_ON_PARTS = frozenset({"convert_element_type", "copy", "reduce_precision", "reshape", "squeeze", "transpose"})
_CONTRACTIONS = frozenset({"dot_general", "ragged_dot", "ragged_dot_general"})
_REDUCTIONS = frozenset({"argmax", "argmin", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"})


def count_traffic(program: Program, placement: Placement) -> Traffic:
    """What a program moves.

    Args:
      program: of a loss, or of its value and gradient.
      placement: of the same program.

    Reference: Megatron-LM, section 3, https://arxiv.org/abs/1909.08053; ZeRO, section 7.2,
    https://arxiv.org/abs/1910.02054
    """
    walk = _Walk(placement)
    walk.run(program, [_HELD_WHOLE] * len(program.inputs), (), (), 1)
    if program.equations:
        walk.add_up_all(program.outputs, _At(program.equations[-1], (), (), 1))
    merged: dict[tuple[Any, ...], Collective] = {}
    for c in walk.collectives:
        key = (c.kind, c.axes, c.source, c.num_bytes)
        known = merged.get(key)
        merged[key] = (
            c
            if known is None
            else dataclasses.replace(
                known, num_runs=known.num_runs + c.num_runs, bytes_moved=known.bytes_moved + c.bytes_moved
            )
        )
    return Traffic(collectives=tuple(sorted(merged.values(), key=lambda c: -c.bytes_moved)))


@dataclasses.dataclass(frozen=True)
class _Held:
    """What is known of how the devices hold a value, besides its split.

    Attributes:
      partial: axes over which the devices hold partial sums.
      source: the line that left them.
      root: the variable that this one is another form of; None for itself.
      at_experts: whether the tokens in it are where their experts are.
    """

    partial: DimAxes = ()
    source: str = ""
    root: Key | None = None
    at_experts: bool = False


_HELD_WHOLE = _Held()


class _Walk:
    """One walk, in the order of the program."""

    def __init__(self, placement: Placement):
        self.collectives: list[Collective] = []
        self._placement = placement
        self._held: dict[Key, _Held] = {}
        # What was gathered, added up or sent to experts already, in this pass through this loop's body.
        self._done: set[tuple[str, Key, Address]] = set()

    def run(
        self, program: Program, arguments: Sequence[_Held], path: Address, loop: Address, num_runs: int
    ) -> list[_Held]:
        """Walks a program.

        Args:
          program: to walk.
          arguments: how its inputs are held.
          path: where it stands.
          loop: where the innermost loop's body around it stands.
          num_runs: how often it is run in a step.
        """
        for variable, held in zip(program.inputs, arguments, strict=True):
            self._held[(path, variable)] = held
        for position, equation in enumerate(program.equations):
            made = self._apply(equation, (*path, position), path, loop, num_runs)
            for variable, held in zip(equation.outputs, made, strict=True):
                self._held[(path, variable)] = held
        return [self._read(path, variable) for variable in program.outputs]

    def _read(self, path: Address, variable: Any) -> _Held:
        return _HELD_WHOLE if jaxprs.is_literal(variable) else self._held.get((path, variable), _HELD_WHOLE)

    def _apply(
        self, equation: Equation, inner_path: Address, path: Address, loop: Address, num_runs: int
    ) -> list[_Held]:
        at = _At(equation, path, loop, num_runs)
        match jaxprs.inner(equation):
            case Call(program):
                # Computed again for the backward pass: what was gathered before is gone.
                inside = inner_path if equation.params.get("differentiated") else loop
                held = [self._as_argument(path, variable) for variable in equation.inputs]
                return self.run(program, held, inner_path, inside, num_runs)
            case Branches(branches):
                return self._branches(branches, at, inner_path)
            case Scan() as scan:
                return self._loop(scan.body, equation.inputs, at, inner_path, num_runs * scan.length)
            case While() as repeated:
                return self._loop(repeated.body, equation.inputs[repeated.num_cond_consts :], at, inner_path, num_runs)
        return self._compute(at)

    def _as_argument(self, path: Address, variable: Any) -> _Held:
        """An argument of a called program is the caller's variable under another name."""
        held = self._read(path, variable)
        if jaxprs.is_literal(variable) or held.root is not None:
            return held
        return dataclasses.replace(held, root=(path, variable))

    def _loop(self, body: Program, inputs: Sequence[Any], at: "_At", inner_path: Address, num_runs: int) -> list[_Held]:
        self.add_up_all(inputs, at)
        self.run(body, [_HELD_WHOLE] * len(body.inputs), inner_path, inner_path, num_runs)
        inside = _At(at.equation, inner_path, inner_path, num_runs)
        self.add_up_all(body.outputs, inside)
        return [_HELD_WHOLE] * len(at.equation.outputs)

    def _branches(self, branches: Sequence[Program], at: "_At", inner_path: Address) -> list[_Held]:
        """The branch that moves most is counted."""
        self.add_up_all(at.equation.inputs, at)
        found: list[list[Collective]] = []
        for i, branch in enumerate(branches):
            start = len(self.collectives)
            path = (*inner_path, i)
            self.run(branch, [_HELD_WHOLE] * len(branch.inputs), path, at.loop, at.num_runs)
            self.add_up_all(branch.outputs, _At(at.equation, path, at.loop, at.num_runs))
            found.append(self.collectives[start:])
            del self.collectives[start:]
        self.collectives += max(found, key=lambda made: sum(c.bytes_moved for c in made))
        return [_HELD_WHOLE] * len(at.equation.outputs)

    def _compute(self, at: "_At") -> list[_Held]:
        equation, placement = at.equation, self._placement
        with_data = any(placement.is_data(at.path, variable) for variable in equation.inputs)
        if with_data:
            for variable in equation.inputs:
                self._gather_stored(variable, at)
        held = [self._read(at.path, variable) for variable in equation.inputs]
        experts = self._visit_experts(at, held)
        partial = self._handed_on(at, held)
        if equation.name in _CONTRACTIONS:
            partial = (*partial, *self._contracted(at))
        elif equation.name in ("reduce_sum", *_REDUCTIONS) and with_data:
            partial = tuple(dict.fromkeys((*partial, *self._reduced(at))))
        elif equation.name.startswith("scatter") and with_data:
            partial = self._scattered(at)
        elif equation.name == "gather" and with_data:
            partial = self._looked_up(at)
        root = held[0].root or (at.path, equation.inputs[0]) if equation.name in _ON_PARTS and not with_data else None
        source = next((one.source for one in held if one.partial), "") or equation.source
        made = [_Held(partial=partial, source=source, root=root, at_experts=experts) for _ in equation.outputs]
        for variable in equation.outputs:
            self._held[(at.path, variable)] = made[0]
        if partial and equation.name in _REDUCTIONS:
            self.add_up_all(equation.outputs, at)
            return [dataclasses.replace(one, partial=()) for one in made]
        return made

    def _handed_on(self, at: "_At", held: Sequence[_Held]) -> DimAxes:
        """Partial sums stay so through linear operations of all partial operands; else they are added up here."""
        partials = {one.partial for one in held}
        if partials == {()}:
            return ()
        if at.equation.name in _LINEAR and len(partials) == 1:
            return held[0].partial
        self.add_up_all(at.equation.inputs, at)
        return ()

    def _contracted(self, at: "_At") -> DimAxes:
        """The axes over which a contraction leaves partial sums; operands that don't fit are sent around first."""
        contracted, batch = _dims_of(at.equation)
        operands = at.equation.inputs[:2]
        splits = [self._placement.split(at.path, variable) for variable in operands]
        sums = [_axes_of(split, dims) for split, dims in zip(splits, contracted, strict=True)]
        rows = [_axes_of(split, dims) for split, dims in zip(splits, batch, strict=True)]
        free = [
            [a for a in split.axes if a not in (*mine, *same)]
            for split, mine, same in zip(splits, sums, rows, strict=True)
        ]
        if self._placement.gradient_of(at.path, at.equation.outputs[0]) is not None:
            # The gradient of an expert's weights: its tokens are with it, whatever splits them elsewhere.
            own = {a for a in self._placement.split(at.path, at.equation.outputs[0]).axes if axis_of(a) == "expert"}
            sums = [[a for a in mine if a not in own] for mine in sums]
        for side, variable in enumerate(operands):
            # Split here over an axis that the other side uses for something else: this side's parts are moved.
            gathered = tuple(a for a in sums[side] if a in free[1 - side])
            exchanged = tuple(a for a in sums[side] if a in rows[1 - side] and a not in rows[side])
            if gathered:
                self._gather(variable, gathered, at)
            if exchanged:
                self._send("all_to_all", variable, exchanged, at)
            sums[side] = [a for a in sums[side] if a not in (*gathered, *exchanged)]
        both = tuple(a for a in free[0] if a in free[1])
        if both:
            self._gather(min(operands, key=num_bytes), both, at)
        return tuple(dict.fromkeys((*sums[0], *sums[1])))

    def _reduced(self, at: "_At") -> DimAxes:
        split = self._placement.split(at.path, at.equation.inputs[0])
        return tuple(axis for dim in at.equation.params["axes"] for axis in split.dims[dim])

    def _scattered(self, at: "_At") -> DimAxes:
        """Updates of other examples go into the same array: each device has the sum of its own."""
        updates = self._placement.split(at.path, at.equation.inputs[2]).axes
        kept = self._placement.split(at.path, at.equation.outputs[0]).axes
        return tuple(axis for axis in updates if axis not in kept)

    def _looked_up(self, at: "_At") -> DimAxes:
        """Rows that are split: each device has those of its part, and zeros for the others."""
        operand = at.equation.inputs[0]
        split, sizes = self._placement.split(at.path, operand), at.equation.params["slice_sizes"]
        kept = self._placement.split(at.path, at.equation.outputs[0]).axes
        whole = jaxprs.shape_of(operand)
        indexed = [dim for dim in at.equation.params["dimension_numbers"].start_index_map if sizes[dim] < whole[dim]]
        return tuple(axis for dim in indexed for axis in split.dims[dim] if axis not in kept)

    def _visit_experts(self, at: "_At", held: Sequence[_Held]) -> bool:
        """Whether the outputs are where the experts are; sends there and back what has to go."""
        equation, placement = at.equation, self._placement
        data = [v for v in equation.inputs if placement.is_data(at.path, v)]
        weights = [v for v in equation.inputs if not jaxprs.is_literal(v) and v not in data]
        axes = {a for v in weights for a in self._of_each_expert(at, v)}
        there = any(one.at_experts for one in held)
        is_contraction = equation.name in _CONTRACTIONS
        if axes and data and is_contraction:
            for variable in data:
                if not self._read(at.path, variable).at_experts:
                    self._send("all_to_all", variable, tuple(axes), at)
            return True
        if there and (is_contraction or equation.name in ("gather", "scatter-add", "scatter_add", "sort")):
            of = [placement.gradient_of(at.path, v) for v in equation.outputs]
            for variable, one in zip(equation.inputs, held, strict=True):
                if one.at_experts and of == [None]:
                    self._send("all_to_all", variable, ("expert",), at)
            return False
        return there

    def _of_each_expert(self, at: "_At", weights: Any) -> list[str]:
        """The `expert` axes of weights that each expert has its own of: with a batch dim for the experts, or ragged."""
        split, equation = self._placement.split(at.path, weights), at.equation
        if equation.name not in _CONTRACTIONS:
            return []
        _, batch = _dims_of(equation)
        axes = _axes_of(split, batch[0 if weights is equation.inputs[0] else 1])
        return [a for a in axes if axis_of(a) == "expert"]

    def add_up_all(self, variables: Sequence[Any], at: "_At") -> None:
        """Adds up those variables of which the devices hold partial sums."""
        for variable in variables:
            held = self._read(at.path, variable)
            if held.partial:
                self._add_up(variable, held, at)
                self._held[(at.path, variable)] = dataclasses.replace(held, partial=())

    def _add_up(self, variable: Any, held: _Held, at: "_At") -> None:
        """Each device gets its part where the result is split, or stored, over an axis; else all get all of it."""
        split = self._placement.split(at.path, variable)
        scattered = tuple(a for a in held.partial if a in (*split.axes, *split.stored))
        rest = tuple(a for a in held.partial if a not in scattered)
        others = self._placement.ways(tuple(a for a in split.axes if a not in scattered))
        whole = num_bytes(variable) // others
        if scattered:
            self._note("reduce_scatter", scattered, whole, at, held.source)
        if rest:
            self._note("all_reduce", rest, whole // self._placement.ways(scattered), at, held.source)

    def _gather_stored(self, variable: Any, at: "_At") -> None:
        stored = self._placement.split(at.path, variable).stored
        if stored and not self._placement.is_data(at.path, variable):
            self._send("all_gather", variable, stored, at)

    def _gather(self, variable: Any, axes: DimAxes, at: "_At") -> None:
        others = tuple(a for a in self._placement.split(at.path, variable).axes if a not in axes)
        if self._is_first("all_gather", variable, at):
            self._note("all_gather", axes, num_bytes(variable) // self._placement.ways(others), at)

    def _send(self, kind: CollectiveKind, variable: Any, axes: DimAxes, at: "_At") -> None:
        if self._is_first(kind, variable, at):
            self._note(kind, axes, self._placement.bytes_of(at.path, variable), at)

    def _is_first(self, kind: str, variable: Any, at: "_At") -> bool:
        root = self._read(at.path, variable).root or (at.path, variable)
        key = (kind, root, at.loop)
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def _note(self, kind: CollectiveKind, axes: DimAxes, size: int, at: "_At", source: str = "") -> None:
        """One collective; of a reduction over the slices too, the part inside them first."""
        names = tuple(sorted({axis_of(axis) for axis in axes}, key=AXES.index))
        inside = tuple(axis for axis in axes if axis_of(axis) != _DCN_AXIS)
        if kind == "all_reduce" and inside and len(names) > 1 and _DCN_AXIS in names:
            self._note("all_reduce", inside, size, at, source)
            self._note("all_reduce", (_DCN_AXIS,), size // self._placement.ways(inside), at, source)
            return
        group = self._placement.ways(axes)
        if group == 1 or size == 0:
            return
        self.collectives.append(
            Collective(
                kind=kind,
                axes=names,
                network="dcn" if _DCN_AXIS in names else "ici",
                num_runs=at.num_runs,
                num_bytes=size,
                bytes_moved=at.num_runs * ring_bytes(kind, size, group),
                source=source or at.equation.source,
            )
        )


_Dims = tuple[tuple[int, ...], tuple[int, ...]]


def _dims_of(equation: Equation) -> tuple[_Dims, _Dims]:
    """Of both operands of a contraction the dims that it sums over, and those in step: rows go with their matrix."""
    if equation.name == "dot_general":
        contracted, batch = equation.params["dimension_numbers"]
        return contracted, batch
    numbers = equation.params["ragged_dot_dimension_numbers"]
    contracted, (left, right) = numbers.dot_dimension_numbers
    return contracted, (left, (*right, *numbers.rhs_group_dimensions))


def _axes_of(split: Split, dims: Sequence[int]) -> list[str]:
    return [axis for dim in dims for axis in split.dims[dim]]


@dataclasses.dataclass(frozen=True)
class _At:
    """Where the walk is: an equation of the program at `path`, in the body of the loop at `loop`."""

    equation: Equation
    path: Address
    loop: Address
    num_runs: int
