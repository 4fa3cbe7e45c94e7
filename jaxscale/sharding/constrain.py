"""Pins chosen activations of a function to shardings, by rewriting its program: the model's code has no annotations."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding

from jaxscale.errors import UsageError
from jaxscale.sharding import rewrite
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.rewrite import Edit
from jaxscale.sharding.specs import legal_sizes

# An output (its position) of the equation at an address, and where it shall live; several where it goes from one to the
# next, because the compiler can't take it there in one step.
Pins = Mapping[tuple[Address, int], NamedSharding | tuple[NamedSharding, ...]]


def constrain(function: Callable[..., Any], pins: Pins, *example_arguments: Any) -> Callable[..., Any]:
    """The function with some of its intermediate values constrained to shardings.

    It computes what `function` computes, for arguments of the examples' shapes and dtypes, and may be jitted,
    differentiated and vectorised like it: remat, custom derivatives, donation, names and effects are as they were.

    Args:
      function: traceable.
      pins: by the address of an equation of the function's program (see `jaxprs.Address`) and the position of its
        output: the sharding of that output, or those that it goes through. Meshes have Auto axes. Results of custom
        derivatives and kernels can be pinned, what they do inside can't.
      *example_arguments: trees of arrays, or of `jax.ShapeDtypeStruct`; nothing is computed.

    Raises:
      UsageError: a pin's address leads to no equation that may be changed, or its sharding does not fit the value: a
        dim does not divide (jax would copy the whole to every device), the rank is too small, an axis is not Auto.
        The message names the user's line. Nothing has been compiled then.
    """
    traced = rewrite.trace(function, *example_arguments)
    edits = edits_of(traced.jaxpr, pins)
    return dataclasses.replace(traced, jaxpr=rewrite.rewrite(traced.jaxpr, edits)).as_function()


def edits_of(jaxpr: Any, pins: Pins) -> dict[Address, Edit]:
    """The pins as edits of a program, each checked against the value that it pins.

    Args:
      jaxpr: the program that the addresses are of.
      pins: as for `constrain`.

    Raises:
      UsageError: a sharding does not fit its value.
    """
    steps = [(at, step) for at, found in pins.items() for step in (found if isinstance(found, tuple) else (found,))]
    problems = [problem for at, sharding in steps for problem in _problems(jaxpr, *at, sharding)]
    if problems:
        raise UsageError(rewrite.refusal("a value can't be pinned", problems))
    edits: dict[Address, Edit] = {}
    for (address, output), sharding in steps:
        so_far = edits.get(address, Edit()).passed_on
        edits[address] = Edit(passed_on=(*so_far, (output, _Constraint(sharding))))
    return edits


@dataclasses.dataclass(frozen=True)
class _Constraint:
    sharding: NamedSharding

    def __call__(self, array: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(array, self.sharding)


def _problems(jaxpr: Any, address: Address, output: int, sharding: NamedSharding) -> list[str]:
    """What keeps a value from being pinned; nothing where there is no such value, which the rewriting says."""
    equation = rewrite.find(jaxpr, address)
    if equation is None or not 0 <= output < len(equation.outvars):
        return []
    where = rewrite.place_of(address, equation)
    shape = getattr(equation.outvars[output].aval, "shape", ())
    spec, mesh = sharding.spec, sharding.mesh
    if len(spec) > len(shape):
        return [f"{where}: {spec} has {len(spec)} dims, the value of shape {shape} has {len(shape)}"]
    manual = [axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Auto]
    if manual:
        return [
            f"{where}: the mesh's axes {', '.join(manual)} are not Auto; make the mesh with jaxscale.mesh.make_mesh"
        ]
    found = []
    for dim, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        # Besides axes and None there is UNCONSTRAINED, which leaves a dim to XLA.
        axes = entry if isinstance(entry, tuple) else (entry,) if isinstance(entry, str) else ()
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            found.append(
                f"{where}: dim {dim} of {shape} is {size}, which does not divide by {'*'.join(axes)}={parts}, so that "
                f"jax would copy the whole value to every device; sizes that divide it: {legal_sizes(size)}"
            )
    return found
