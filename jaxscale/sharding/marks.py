"""Marks on the axes of arrays, and what can happen to them: the words that following dims through a program needs.

A mark says something of the order of the elements along one axis. What it says is its own matter: an operation that
treats all elements of an axis alike passes the mark on, one that picks elements asks the mark what is left.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeGuard

from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Address, Equation


class Mark(Protocol):
    """What is known of the order along an axis; a value, compared with ==."""

    def taken(self, start: int, stop: int) -> "Mark | None":
        """Of the elements from `start` to `stop` alone."""

    def taken_apart(self, sizes: tuple[int, ...]) -> "Mark | None":
        """Of the first axis where a reshape makes axes of `sizes` of one; the others are in their order."""

    def merged(self, size: int) -> "Mark | None":
        """Of an axis that is merged with `size` elements to each of its own."""

    def met(self, other: "Mark | None") -> "Mark | None":
        """Of an axis whose elements stand for this one's and those of another mark."""


class AnyOrder:
    """Stands for an axis all of whose elements are equal, so that it is in every order."""


ANY_ORDER = AnyOrder()

# None: the axis is in the order of the program.
Axis = Mark | AnyOrder | None
Axes = tuple[Axis, ...]


def is_mark(axis: Axis) -> TypeGuard[Mark]:
    """Whether an axis has a mark."""
    return axis is not None and not isinstance(axis, AnyOrder)


def unmarked(variable: Any) -> Axes:
    """No marks, for all axes of a variable or literal."""
    return (None,) * len(jaxprs.shape_of(variable))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a mark.

    Attributes:
      equation: where.
      address: of the equation; None inside a custom derivative, where nothing may be changed.
      mark: the mark.
      axis: the operand's axis that it is of.
    """

    equation: Equation
    address: Address | None
    mark: Mark
    axis: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut(Event):
    """Elements were picked by position: one window, with a stride, for every output."""

    windows: tuple[tuple[int, int], ...]
    stride: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakenApart(Event):
    """A reshape makes axes of `sizes` of one, and nothing of these axes but that."""

    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Met(Event):
    """Elements meet those of an axis with another mark, or with none."""

    other: Mark | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeByMatmul(Event):
    """It is a free axis of one side of a contraction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lost(Event):
    """The operation has no rule, or what it makes depends on the order."""


class Diary:
    """All that happens to marks, in the order of the program.

    Attributes:
      events: what was noted.
      equation: where the walk is.
      address: of that equation; None inside a custom derivative.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.equation: Equation
        self.address: Address | None = None

    def cut(self, mark: Mark, axis: int, windows: Sequence[tuple[int, int]], stride: int = 1) -> None:
        """Notes a `Cut`."""
        self.events.append(Cut(**self._here(mark, axis), windows=tuple(windows), stride=stride))

    def taken_apart(self, mark: Mark, axis: int, sizes: tuple[int, ...]) -> None:
        """Notes a `TakenApart`."""
        self.events.append(TakenApart(**self._here(mark, axis), sizes=sizes))

    def made_by_matmul(self, axes: Axes, free: Iterable[int]) -> None:
        """Notes a `MadeByMatmul` for the marks among the `free` axes."""
        self.events += [MadeByMatmul(**self._here(axis, i)) for i in free if is_mark(axis := axes[i])]

    def lose(self, axes: Axes, among: Iterable[int] | None = None) -> None:
        """Notes that the marks of `axes`, or of those `among` them, end here."""
        chosen = range(len(axes)) if among is None else among
        self.events += [Lost(**self._here(axis, i)) for i in chosen if is_mark(axis := axes[i])]

    def meet(self, axes: Iterable[Axis], axis: int) -> Axis:
        """What is known of an axis whose elements stand for those of several."""
        known = [one for one in axes if not isinstance(one, AnyOrder)]
        if not known:
            return ANY_ORDER
        first = next((one for one in known if one is not None), None)
        for other in known:
            if first is not None and other != first:
                self.events.append(Met(**self._here(first, axis), other=other))
                first = first.met(other)
        return first

    def meet_all(self, left: Axes, right: Axes) -> Axes:
        """What is known of the axes of a value that is one or the other."""
        return tuple(self.meet(pair, i) for i, pair in enumerate(zip(left, right, strict=True)))

    def _here(self, mark: Mark, axis: int) -> dict[str, Any]:
        return {"equation": self.equation, "address": self.address, "mark": mark, "axis": axis}
