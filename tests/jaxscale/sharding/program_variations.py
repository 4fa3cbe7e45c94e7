"""The same computation written otherwise: operands swapped, einsums for products, equations in another order."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import DropVar, Literal

from jaxscale.sharding import jaxprs, rewrite
from jaxscale.sharding.rewrite import Edit

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def swapped(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function with the operands of every product swapped, and its result transposed back."""
    return _edited(function, arguments, _swapped_product)


def as_einsums(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function with an einsum for every product, and its result transposed back."""
    return _edited(function, arguments, _einsum)


def reordered(function: Callable[..., Any], *arguments: Any, seed: int) -> Callable[..., Any]:
    """The function with its equations in another order that computes the same, in every program that it holds."""
    traced = rewrite.trace(function, *arguments)
    changed = _reordered(traced.jaxpr, np.random.default_rng(seed))
    return dataclasses.replace(traced, jaxpr=changed).as_function()


def _edited(function: Callable[..., Any], arguments: Any, operation: Callable[..., Any]) -> Callable[..., Any]:
    traced = rewrite.trace(function, *arguments)
    return dataclasses.replace(traced, jaxpr=_products_as(operation, traced.jaxpr)).as_function()


def _products_as(operation: Callable[..., Any], jaxpr: Any) -> Any:
    jaxpr = _in_custom_bodies(lambda body: _products_as(operation, body), jaxpr)
    edits = {
        address: Edit(replacement=operation(equation))
        for address, equation in rewrite.equations(jaxpr)
        if equation.primitive.name == "dot_general"
    }
    return rewrite.rewrite(jaxpr, edits)


def _in_custom_bodies(change: Callable[[Any], Any], jaxpr: Any) -> Any:
    """The program with the bodies of its custom derivatives changed: fit to be run or planned, not differentiated."""

    def changed(equation: Any) -> Any:
        held = jaxprs.changeable(equation)
        if held:
            return jaxprs.with_changed(equation, [_in_custom_bodies(change, inner) for inner in held])
        return _with_custom_body(change, equation)

    opened = getattr(jaxpr, "jaxpr", jaxpr)
    return jaxprs.with_equations(jaxpr, [changed(equation) for equation in opened.eqns], opened.outvars)


def _with_custom_body(change: Callable[[Any], Any], equation: Any) -> Any:
    if not equation.primitive.name.startswith("custom_"):
        return equation
    return equation.replace(params={**equation.params, "call_jaxpr": change(equation.params["call_jaxpr"])})


def _swapped_product(equation: Any) -> Callable[..., Any]:
    params = dict(equation.params)
    (left_contracted, right_contracted), (left_batch, right_batch) = params.pop("dimension_numbers")
    left, right = (len(atom.aval.shape) for atom in equation.invars)
    num_batch = len(left_batch)
    num_left = left - num_batch - len(left_contracted)
    num_right = right - num_batch - len(right_contracted)
    numbers = ((right_contracted, left_contracted), (right_batch, left_batch))
    back = (
        *range(num_batch),
        *range(num_batch + num_right, num_batch + num_right + num_left),
        *range(num_batch, num_batch + num_right),
    )

    def product(a, b):
        made = jax.lax.dot_general_p.bind(b, a, dimension_numbers=numbers, **params)
        return jax.lax.transpose(made, back)

    return product


def _einsum(equation: Any) -> Callable[..., Any]:
    (left_contracted, right_contracted), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left_rank, right_rank = (len(atom.aval.shape) for atom in equation.invars)
    letters = iter(_LETTERS)
    left = [next(letters) for _ in range(left_rank)]
    right = [next(letters) for _ in range(right_rank)]
    for mine, theirs in zip((*left_contracted, *left_batch), (*right_contracted, *right_batch), strict=True):
        right[theirs] = left[mine]
    free_left = [letter for i, letter in enumerate(left) if i not in (*left_contracted, *left_batch)]
    free_right = [letter for i, letter in enumerate(right) if i not in (*right_contracted, *right_batch)]
    batch = [left[i] for i in left_batch]
    # In this order einsum swaps the operands by itself.
    made = [*batch, *free_right, *free_left]
    formula = f"{''.join(left)},{''.join(right)}->{''.join(made)}"
    back = [made.index(letter) for letter in (*batch, *free_left, *free_right)]
    options = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    return lambda a, b: jnp.einsum(formula, a, b, **options).transpose(back)


def _reordered(jaxpr: Any, draw: np.random.Generator) -> Any:
    waiting = [_inside_reordered(equation, draw) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns]
    made_by = {
        variable: i
        for i, equation in enumerate(waiting)
        for variable in equation.outvars
        if not isinstance(variable, DropVar)
    }
    needs = [
        {made_by[atom] for atom in equation.invars if not isinstance(atom, Literal) and atom in made_by}
        for equation in waiting
    ]
    order: list[int] = []
    left = set(range(len(waiting)))
    while left:
        ready = sorted(i for i in left if not needs[i] & left)
        chosen = ready[int(draw.integers(len(ready)))]
        order.append(chosen)
        left.remove(chosen)
    outputs = getattr(jaxpr, "jaxpr", jaxpr).outvars
    return jaxprs.with_equations(jaxpr, [waiting[i] for i in order], outputs)


def _inside_reordered(equation: Any, draw: np.random.Generator) -> Any:
    held = jaxprs.changeable(equation)
    if held:
        return jaxprs.with_changed(equation, [_reordered(inner, draw) for inner in held])
    return _with_custom_body(lambda body: _reordered(body, draw), equation)
