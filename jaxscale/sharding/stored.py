"""Makes a function compute with leaves in their stored layouts, so that taking parts out of a dim moves no data.

What treats all elements of a dim alike (the free dim of a matmul, a bias, an activation) runs as it is, on the stored
order. A `split`, a `slice` or a reshape that takes the parts out is replaced by one that takes every shard's own piece:

    [.., n]  ->  [.., shards, n / shards]  ->  a window of the last dim  ->  [.., part]

The result is the part in its logical order, split over the same devices.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxscale.errors import UsageError
from jaxscale.sharding import constrain, rewrite
from jaxscale.sharding.follow import follow
from jaxscale.sharding.islands import IslandsOnMesh
from jaxscale.sharding.jaxprs import Address, Program
from jaxscale.sharding.layouts import Layouts, StoredLayout, windows
from jaxscale.sharding.marks import Axes, Cut, Event, Lost, Mark, Met, TakenApart, is_mark
from jaxscale.sharding.rewrite import Edit, Operation

# From a program to what takes the place of some of its equations, by their addresses.
Replacing = Callable[[Any], Mapping[Address, Operation]]


def compute_stored(
    function: Callable[..., Any],
    layouts: Layouts,
    *example_arguments: Any,
    pins: constrain.Pins | None = None,
    islands: IslandsOnMesh | None = None,
    replacing: Replacing | None = None,
) -> Callable[..., Any]:
    """The function of arguments some leaves of which are stored in another order.

    `compute_stored(f, layouts, x)(store_leaves(x, layouts))` is `f(x)`, and so are gradients, in the stored order.

    Args:
      function: traceable, and nothing it returns is in the stored order: a loss.
      layouts: by the position of a leaf in `jax.tree.leaves(example_arguments)`.
      *example_arguments: trees of arrays, or of `jax.ShapeDtypeStruct`; nothing is computed.
      pins: what to constrain as well, as for `constrain`, by addresses in the program of `function` as it is.
      islands: what each device computes on its own parts, by such addresses too.
      replacing: gives the equations to be replaced, in the program of `function` as it is; what they hold is pinned no
        more.

    Raises:
      UsageError: the function depends on the order of a dim that is stored in another one, or cuts it elsewhere than
        between its parts: the message names the user's line.
    """
    traced = rewrite.trace(function, *example_arguments)
    edits = edits_of(traced.jaxpr, layouts) | (islands.edits_of(traced.jaxpr) if islands else {})
    replaced = replacing(traced.jaxpr) if replacing else {}
    edits |= {address: Edit(replacement=operation) for address, operation in replaced.items()}
    for address, pinned in constrain.edits_of(traced.jaxpr, pins or {}).items():
        if any(address[:n] in replaced for n in range(1, len(address))):
            continue
        replacement = edits[address].replacement if address in edits else None
        edits[address] = Edit(replacement=replacement, passed_on=pinned.passed_on)
    return dataclasses.replace(traced, jaxpr=rewrite.rewrite(traced.jaxpr, edits)).as_function()


def edits_of(jaxpr: Any, layouts: Layouts) -> dict[Address, Edit]:
    """The changes that make a program compute with stored leaves.

    Args:
      jaxpr: the program.
      layouts: by the position of an input.

    Raises:
      UsageError: as for `compute_stored`.
    """
    program = Program(jaxpr)
    results, events = follow(program, [_axes(i, variable, layouts) for i, variable in enumerate(program.inputs)])
    problems = [problem for event in events if (problem := _problem(event))]
    problems += [f"result leaf {i} is in the stored order" for i, axes in enumerate(results) if any(map(is_mark, axes))]
    edits: dict[Address, Edit] = {}
    for event in [] if problems else events:
        replacement = _replacement(event)
        if replacement is None or event.address is None:
            continue
        if event.address in edits:
            problems.append(f"{_place(event)} takes two stored dims apart at once")
        edits[event.address] = Edit(replacement=replacement)
    if problems:
        raise UsageError(rewrite.refusal("the function can't be computed in the stored layout", problems))
    return edits


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dealt:
    """Along an axis, every shard holds its piece of every part: at least two of each."""

    parts: tuple[int, ...]
    num_shards: int

    def taken(self, start: int, stop: int) -> Mark | None:
        inside = self.covered(start, stop)
        return dataclasses.replace(self, parts=inside) if inside and len(inside) > 1 else None

    def taken_apart(self, sizes: tuple[int, ...]) -> Mark | None:
        grain = math.prod(sizes[1:])
        return dataclasses.replace(self, parts=tuple(n // grain for n in self.parts)) if self.keeps(grain) else None

    def merged(self, size: int) -> Mark | None:
        return dataclasses.replace(self, parts=tuple(n * size for n in self.parts))

    def met(self, other: Mark | None) -> Mark | None:
        return None

    def covered(self, start: int, stop: int) -> tuple[int, ...] | None:
        """The parts that a window consists of; None where it cuts one."""
        inside = [(a, b) for a, b in windows(self.parts) if start <= a and b <= stop]
        whole = inside and (inside[0][0], inside[-1][1]) == (start, stop)
        return tuple(b - a for a, b in inside) if whole else None

    def keeps(self, grain: int) -> bool:
        """Whether pieces are whole multiples of `grain` elements, which then are one."""
        return all(part % (self.num_shards * grain) == 0 for part in self.parts)

    def unpacks(self, sizes: tuple[int, ...]) -> bool:
        """Whether the first of `sizes` counts the parts, and the second can be split over the shards."""
        return len(set(self.parts)) == 1 and sizes[0] == len(self.parts) and sizes[1] % self.num_shards == 0


def _axes(position: int, variable: Any, layouts: Layouts) -> Axes:
    shape = tuple(variable.aval.shape)
    layout = layouts.get(position)
    if layout is not None and layout.logical_shape != shape:
        raise UsageError(f"layout of leaf {position}: logical_shape={layout.logical_shape}, but the leaf is {shape}")
    return tuple(_mark(layout) if layout is not None and i == layout.dim else None for i in range(len(shape)))


def _mark(layout: StoredLayout) -> Mark | None:
    dealt = len(layout.parts) > 1 and layout.num_shards > 1
    return _Dealt(parts=layout.parts, num_shards=layout.num_shards) if dealt else None


def _place(event: Event) -> str:
    source = f" at {event.equation.source}" if event.equation.source else ""
    return f"{event.equation.name}{source}, dim {event.axis} of {event.equation.inputs[0].aval.shape}"


def _problem(event: Event) -> str | None:
    """Why the stored order can't be carried through an operation."""
    mark = event.mark
    if not isinstance(mark, _Dealt):
        return None
    where = f"{_place(event)}: stored as parts {mark.parts} in {mark.num_shards} shards"
    match event:
        case Lost():
            return f"{where}, and the operation depends on the order"
        case Met():
            return f"{where}, and meets {'another stored order' if event.other else 'values in the logical order'}"
        case Cut() if event.stride != 1 or any(mark.covered(*window) is None for window in event.windows):
            return (
                f"{where}, and cut at {event.windows}{f' by {event.stride}' * (event.stride != 1)}, not between parts"
            )
        case TakenApart() if not mark.keeps(math.prod(event.sizes[1:])) and not mark.unpacks(event.sizes):
            return f"{where}, and reshaped to {event.sizes}: no shard would have whole pieces of every part"
    if event.address is None and _replacement(event) is not None:
        return f"{where}, and taken apart inside a custom derivative, which is not changed"
    return None


def _replacement(event: Event) -> Operation | None:
    mark, params = event.mark, event.equation.params
    if not isinstance(mark, _Dealt):
        return None
    if isinstance(event, Cut):
        rest = None
        if event.equation.name == "slice":
            rest = tuple(zip(params["start_indices"], params["limit_indices"], strict=True)), params["strides"]
        return _Pieces(axis=event.axis, mark=mark, windows=event.windows, rest=rest)
    if isinstance(event, TakenApart) and not mark.keeps(math.prod(event.sizes[1:])):
        return _Unpacked(axis=event.axis, mark=mark, shape=event.equation.output_shapes[0])
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
    """Windows of whole parts, out of every shard its own; `rest` is what a slice does to the other axes."""

    axis: int
    mark: _Dealt
    windows: tuple[tuple[int, int], ...]
    rest: tuple[tuple[tuple[int, int], ...], tuple[int, ...] | None] | None

    def __call__(self, array: jax.Array) -> Sequence[jax.Array]:
        if self.rest is not None:
            bounds, strides = self.rest
            bounds = (*bounds[: self.axis], (0, array.shape[self.axis]), *bounds[self.axis + 1 :])
            array = jax.lax.slice(array, [a for a, _ in bounds], [b for _, b in bounds], strides)
        shards, axis = self.mark.num_shards, self.axis
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        local = array.reshape(*before, shards, array.shape[axis] // shards, *after)
        pieces = [jax.lax.slice_in_dim(local, a // shards, b // shards, axis=axis + 1) for a, b in self.windows]
        return [piece.reshape(*before, b - a, *after) for piece, (a, b) in zip(pieces, self.windows, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unpacked:
    """A reshape that makes one axis of equal parts and one of what each holds: shards move from before it to behind."""

    axis: int
    mark: _Dealt
    shape: tuple[int, ...]

    def __call__(self, array: jax.Array) -> jax.Array:
        shards, num_parts, axis = self.mark.num_shards, len(self.mark.parts), self.axis
        before, after = array.shape[:axis], array.shape[axis + 1 :]
        dealt = array.reshape(*before, shards, num_parts, array.shape[axis] // (shards * num_parts), *after)
        return jax.numpy.swapaxes(dealt, axis, axis + 1).reshape(self.shape)
