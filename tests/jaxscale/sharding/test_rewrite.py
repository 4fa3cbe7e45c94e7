"""Programs are copied with exactly the changes asked for, wherever the equation stands."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import DropVar

from jaxscale.errors import UsageError
from jaxscale.sharding import jaxprs, rewrite
from jaxscale.sharding.rewrite import Edit

X = jnp.arange(6, dtype=jnp.float32).reshape(3, 2) / 7


def doubled(array: jax.Array) -> jax.Array:
    return array + array


DOUBLE = Edit(passed_on=((0, doubled),))


def find_all(jaxpr: Any, primitive: str) -> list[tuple[int, ...]]:
    return [address for address, e in rewrite.equations(jaxpr) if e.primitive.name == primitive]


def edited(function: Callable[..., Any], primitive: str, edit: Edit, *arguments: Any) -> Callable[..., Any]:
    """The function with one edit at every equation of a primitive."""
    traced = rewrite.trace(function, *arguments)
    edits = dict.fromkeys(find_all(traced.jaxpr, primitive), edit)
    assert edits
    return jax.jit(
        rewrite.Traced(
            function=function,
            jaxpr=rewrite.rewrite(traced.jaxpr, edits),
            in_tree=traced.in_tree,
            out_tree=traced.out_tree,
        ).as_function()
    )


# Each holds one `tanh`, somewhere; the second argument stands for it.
def plain(x: jax.Array, f: Callable[..., Any]) -> jax.Array:
    return f(x) * 3.0


def scanned(x: jax.Array, f: Callable[..., Any]) -> Any:
    return jax.lax.scan(lambda carry, row: (carry + f(row), carry * 2.0), jnp.ones(2, jnp.float32), x)


def looped(x: jax.Array, f: Callable[..., Any]) -> jax.Array:
    return jax.lax.while_loop(lambda y: jnp.sum(y) < 5.0, lambda y: f(y) + y + 0.1, x)


def branched(x: jax.Array, f: Callable[..., Any]) -> jax.Array:
    return jax.lax.cond(jnp.sum(x) > 0.0, lambda y: f(y), lambda y: y * 5.0, x) + 1.0


def rematted(x: jax.Array, f: Callable[..., Any]) -> jax.Array:
    return jax.checkpoint(lambda y: f(y) * y)(x)


def jitted(x: jax.Array, f: Callable[..., Any]) -> jax.Array:
    return jax.jit(lambda y: f(y) - y)(x)


def nested(x: jax.Array, f: Callable[..., Any]) -> jax.Array:
    return jax.jit(lambda y: scanned(y, lambda row: rematted(row, f))[0])(x)


PLACES = (plain, scanned, looped, branched, rematted, jitted, nested)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_passed_on_is_changed_everywhere(place: Callable[..., Any]) -> None:
    def function(x: jax.Array) -> Any:
        return place(x, jnp.tanh)

    expected = place(X, lambda y: doubled(jnp.tanh(y)))
    np.testing.assert_allclose(edited(function, "tanh", DOUBLE, X)(X)[0], expected[0], rtol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_an_equation_is_replaced_everywhere(place: Callable[..., Any]) -> None:
    def function(x: jax.Array) -> Any:
        return place(x, jnp.tanh)

    expected = place(X, jnp.exp)
    np.testing.assert_allclose(edited(function, "tanh", Edit(replacement=jax.lax.exp), X)(X)[0], expected[0], rtol=1e-6)


def test_a_replaced_output_can_be_passed_on_too() -> None:
    both = Edit(replacement=jax.lax.exp, passed_on=DOUBLE.passed_on)
    np.testing.assert_allclose(edited(jnp.tanh, "tanh", both, X)(X), 2 * np.exp(X), rtol=1e-6)


def test_a_replacement_may_return_its_operand_and_constants() -> None:
    edit = Edit(replacement=lambda y: [y, jnp.float32(2.0) * jnp.ones_like(y)])

    def function(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.lax.split(x, (1, 1), axis=1)
        return first, second

    got = edited(function, "split", Edit(replacement=lambda y: [y[:, 1:], y[:, :1]]), X)(X)
    np.testing.assert_array_equal(got[0], X[:, 1:])
    np.testing.assert_array_equal(got[1], X[:, :1])
    with pytest.raises(ValueError, match=r"makes .*\[3, 2\].* where the program had .*\[3, 1\]"):
        edited(function, "split", edit, X)
    np.testing.assert_array_equal(edited(jnp.tanh, "tanh", Edit(replacement=lambda y: y), X)(X), X)


def test_programs_without_a_change_stay_the_same_objects() -> None:
    inner = jax.jit(jnp.tanh)

    def function(x: jax.Array) -> jax.Array:
        return jnp.sum(inner(x) + jax.jit(jnp.cos)(x))

    jaxpr = rewrite.trace(function, X).jaxpr
    assert rewrite.rewrite(jaxpr, {}) is jaxpr
    assert rewrite.rewrite(jaxpr, {(0,): Edit()}) is jaxpr
    (address,) = find_all(jaxpr, "cos")
    changed = rewrite.rewrite(jaxpr, {address: DOUBLE})
    first, second = ([e for e in j.eqns if e.primitive.name in ("jit", "pjit")] for j in (jaxpr, changed))
    assert first[0].params["jaxpr"] is second[0].params["jaxpr"]
    assert first[1].params["jaxpr"] is not second[1].params["jaxpr"]
    assert first[1].params["name"] == second[1].params["name"]


def test_equal_changes_of_one_program_make_one_program() -> None:
    layer = jax.jit(jnp.tanh)
    jaxpr = rewrite.trace(lambda x: layer(layer(layer(x))), X).jaxpr
    addresses = find_all(jaxpr, "tanh")
    assert len(addresses) == 3
    changed = rewrite.rewrite(jaxpr, dict.fromkeys(addresses, DOUBLE))
    assert len({id(e.params["jaxpr"]) for e in changed.eqns}) == 1
    changed = rewrite.rewrite(jaxpr, {addresses[0]: DOUBLE, addresses[1]: DOUBLE})
    assert len({id(e.params["jaxpr"]) for e in changed.eqns}) == 2


def test_constants_and_names_are_kept() -> None:
    table = jnp.arange(2, dtype=jnp.float32)[None]

    def named(x: jax.Array) -> dict[str, Any]:
        return {"b": (jnp.tanh(x) * table, None), "a": jax.jit(lambda y: y + table)(x)}

    got = edited(named, "tanh", DOUBLE, X)
    assert got.__name__ == "named"
    result = got(X)
    assert jax.tree.structure(result) == jax.tree.structure(named(X))
    np.testing.assert_allclose(result["b"][0], 2 * np.tanh(X) * table, rtol=1e-6)
    np.testing.assert_array_equal(result["a"], X + table)


def test_weak_types_and_dtypes_are_kept() -> None:
    def function(x: jax.Array, scale: Any, count: jax.Array) -> Any:
        return jnp.tanh(x) * scale, jnp.tanh(scale), count + 1, x.astype(jnp.bfloat16)

    arguments = (X, 2.0, jnp.int8(3))
    expected = jax.eval_shape(function, *arguments)
    got = jax.eval_shape(edited(function, "tanh", DOUBLE, *arguments), *arguments)
    assert [(a.dtype, a.weak_type, a.shape) for a in got] == [(a.dtype, a.weak_type, a.shape) for a in expected]


def test_effects_stay_in_their_order() -> None:
    seen: list[tuple[str, float]] = []

    def note(name: str, value: Any) -> None:
        seen.append((name, round(float(value), 3)))

    def function(x: jax.Array) -> jax.Array:
        def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
            jax.debug.callback(lambda v: note("row", v), row[0], ordered=True)
            return carry + jnp.tanh(row), None

        jax.debug.callback(lambda v: note("first", v), x[0, 0], ordered=True)
        total, _ = jax.lax.scan(body, jnp.zeros(2, jnp.float32), x)
        jax.debug.callback(lambda v: note("last", v), total[1], ordered=True)
        return total

    function(X)
    jax.effects_barrier()
    plainly, seen[:] = list(seen), []
    # tanh is linear enough here that only the last value tells the two apart.
    edited(function, "tanh", DOUBLE, X)(X)
    jax.effects_barrier()
    assert [name for name, _ in seen] == ["first", "row", "row", "row", "last"]
    assert seen[:-1] == plainly[:-1]
    assert seen[-1][1] == pytest.approx(2 * plainly[-1][1], abs=2e-3)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ((9,), r"address \(9,\): there is no such equation; the program has"),
        ((), "there is no such equation"),
        ((0, 0), r"address \(0, 0\): custom_vjp_call at test_rewrite.py:\d+ is not entered"),
        ((1, 7), r"address \(1, 7\): (jit|pjit) at test_rewrite.py:\d+ has no such"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address: tuple[int, ...], message: str) -> None:
    @jax.custom_vjp
    def special(x: jax.Array) -> jax.Array:
        return jnp.sin(x)

    special.defvjp(lambda x: (special(x), x), lambda x, g: (g,))
    jaxpr = rewrite.trace(lambda x: jax.jit(jnp.tanh)(special(x)), X).jaxpr
    with pytest.raises(UsageError, match=message):
        rewrite.rewrite(jaxpr, {address: DOUBLE})


def test_outputs_that_are_not_there_and_edits_in_replaced_equations_are_refused() -> None:
    jaxpr = rewrite.trace(lambda x: jax.lax.split(jax.jit(jnp.tanh)(x), (1, 1), axis=1)[0], X).jaxpr
    with pytest.raises(UsageError, match="has 2 outputs, got output 2"):
        rewrite.rewrite(jaxpr, {(1,): Edit(passed_on=((2, doubled),))})
    call, split = jaxpr.eqns
    unread = split.replace(outvars=[split.outvars[0], DropVar(split.outvars[1].aval)])
    with pytest.raises(UsageError, match="nothing reads output 1"):
        rewrite.rewrite(
            jaxprs.with_equations(jaxpr, [call, unread], jaxpr.outvars), {(1,): Edit(passed_on=((1, doubled),))}
        )
    with pytest.raises(UsageError, match=r"\(0, 0\) is inside the equation at \(0,\), which is replaced"):
        rewrite.rewrite(jaxpr, {(0,): Edit(replacement=jax.lax.exp), (0, 0): DOUBLE})


def test_a_rewritten_function_refuses_other_arguments() -> None:
    function = edited(jnp.tanh, "tanh", DOUBLE, X)
    with pytest.raises(UsageError, match=r"argument leaf 0: got float32\[2, 3\], expected float32\[3, 2\]"):
        function(X.T)
    with pytest.raises(UsageError, match="arguments: got PyTreeDef"):
        function({"x": X})


def test_an_edit_may_not_close_over_arrays() -> None:
    with pytest.raises(ValueError, match="closes over arrays"):
        edited(jnp.tanh, "tanh", Edit(replacement=lambda y: y * X), X)
