"""Marks go where their axes go, and what happens to them is noted with its place."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxscale.sharding import jaxprs
from jaxscale.sharding.follow import follow
from jaxscale.sharding.marks import ANY_ORDER, Axes, Cut, Event, Lost, MadeByMatmul, Mark, Met, TakenApart


@dataclasses.dataclass(frozen=True)
class Ink:
    """A mark that survives everything, and says how many elements of the first axis one of its own stands for."""

    size: float = 1

    def taken(self, start: int, stop: int) -> Mark | None:
        return self

    def taken_apart(self, sizes: tuple[int, ...]) -> Mark | None:
        for size in sizes[1:]:
            return Ink(self.size * size)
        return self

    def merged(self, size: int) -> Mark | None:
        return Ink(self.size / size)

    def met(self, other: Mark | None) -> Mark | None:
        return None


def results(function: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[Axes, list[Event]]:
    """The marks of the one result, and the events, of a function whose first argument's last axis is marked."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    marked = [(*(None for _ in shapes[0][1:]), Ink()), *((None,) * len(shape) for shape in shapes[1:])]
    (axes,), events = follow(jaxprs.trace(function, *arguments), marked)
    return axes, events


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.T, (Ink(), None)),
        (lambda x: jnp.tanh(x) * 2.0 + jnp.ones((4, 6), jnp.float32), (None, Ink())),
        (lambda x: x[:, None], (None, ANY_ORDER, Ink())),
        (lambda x: jnp.sum(x, axis=0), (Ink(),)),
        (lambda x: jnp.sum(x, axis=1), (None,)),
        (lambda x: x.reshape(2, 2, 6), (None, None, Ink())),
        (lambda x: x.reshape(4, 3, 2), (None, Ink(2), None)),
        (lambda x: x.reshape(4, 3, 2).reshape(4, 6), (None, Ink())),
        (lambda x: x[1:3], (None, Ink())),
        (lambda x: jnp.cumsum(x, axis=0), (None, Ink())),
        (lambda x: jnp.concatenate([x, x], axis=0), (None, Ink())),
        (lambda x: jnp.take(x, jnp.array([0, 2]), axis=0), (None, Ink())),
        (lambda x: jnp.where(x > 0, x, 0.0), (None, Ink())),
        (lambda x: jax.jit(jax.checkpoint(jnp.sin))(x), (None, Ink())),
        (lambda x: jax.lax.scan(lambda c, row: (c + row, row), jnp.zeros((6,), jnp.float32), x)[0], (Ink(),)),
        (lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x), (None, Ink())),
    ],
)
def test_marks_follow_their_axes(function: Callable[..., Any], expected: Axes) -> None:
    axes, events = results(function, (4, 6))
    assert axes == expected
    assert not [event for event in events if isinstance(event, Lost | Met)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.cumsum(x, axis=1),
        lambda x: jnp.flip(x, axis=1),
        lambda x: jnp.argmax(x, axis=1),
        lambda x: jnp.concatenate([x, x], axis=1),
        lambda x: x.reshape(24),
        lambda x: jnp.take(x, jnp.array([0, 2]), axis=1),
        lambda x: jnp.pad(x, ((0, 0), (1, 0))),
        lambda x: jax.lax.while_loop(lambda y: jnp.sum(y) < 1.0, jnp.sin, x),
    ],
)
def test_what_depends_on_the_order_loses_the_mark(function: Callable[..., Any]) -> None:
    _, events = results(function, (4, 6))
    assert [event.mark for event in events if isinstance(event, Lost)][:1] == [Ink()]


def test_cuts_are_noted_with_their_windows_and_addresses() -> None:
    def function(x: jax.Array) -> jax.Array:
        y = jax.jit(lambda z: jax.lax.split(z, (2, 4), axis=1)[1])(x)
        return y[:2, 1:4:2]

    axes, (split, cut) = results(function, (4, 6))
    assert axes == (None, None)
    assert isinstance(split, Cut)
    assert (split.address, split.axis, split.windows, split.stride) == ((0, 0), 1, ((0, 2), (2, 6)), 1)
    assert isinstance(cut, Cut)
    assert (cut.address, cut.windows, cut.stride) == ((1,), ((1, 4),), 2)


def test_contractions_meet_and_make() -> None:
    axes, events = results(lambda x, w: jnp.dot(w, x), (4, 6), (3, 4))
    assert axes == (None, Ink())
    assert [type(event) for event in events] == [MadeByMatmul]
    axes, events = results(lambda x, w: jnp.dot(x, w), (4, 6), (6, 3))
    assert axes == (None, None)
    assert [(type(event), event.axis) for event in events] == [(Met, 1)]


def test_reshapes_that_take_an_axis_apart_are_noted() -> None:
    _, (event,) = results(lambda x: x.reshape(2, 2, 3, 1, 2), (4, 6))
    assert isinstance(event, TakenApart)
    assert (event.sizes, event.axis, event.address) == ((3, 2), 1, (0,))


def test_a_carry_that_begins_in_the_programs_order_meets_the_mark() -> None:
    def function(x: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, row: (c + row, None), start, x)[0]

    axes, events = results(function, (4, 6), (6,))
    assert axes == (None,)
    assert any(isinstance(event, Met) for event in events)


def test_nothing_may_be_changed_inside_custom_derivatives() -> None:
    @jax.custom_jvp
    def half(x: jax.Array) -> jax.Array:
        return x[:, :3]

    half.defjvp(lambda primals, tangents: (half(primals[0]), tangents[0][:, :3]))
    _, (event,) = results(lambda x: half(x), (4, 6))
    assert isinstance(event, Cut)
    assert event.address is None
