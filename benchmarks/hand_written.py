"""Specs written by hand: for parameters by the end of their paths, for activations by their shapes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jaxscale.mesh import in_parts
from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan
from jaxscale.sharding.specs import AxisFactors, Spec, partition_spec
from jaxscale.sharding.trace import LossFunction

# What an expert would constrain: results of matmuls, of lookups, of residual sums, and of activation functions.
_CONSTRAINED = ("add", "custom_jvp_call", "custom_vjp_call", "dot_general", "gather", "split")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandWritten:
    """One way in which an expert would shard a computation.

    Specs are written as `fsdp, tensor, -`: for every dim the axes it is split over.

    Attributes:
      name: of this way, among those of a case.
      why: the reason, in words.
      parameters: by the end of a path. Leading dims that a spec does not name are whole; so is what has no spec.
      activations: by the shape of the whole array.
      factors: the axes that specs name in parts, as `tensor[1:2]`.
      params: where the model itself is written differently for the mesh: its parameters; the loss takes both.
    """

    name: str
    why: str
    parameters: Mapping[str, str]
    activations: Mapping[tuple[int, ...], str] = dataclasses.field(default_factory=dict)
    factors: AxisFactors = dataclasses.field(default_factory=dict)
    params: Any = None

    def mesh(self, mesh: Mesh) -> Mesh:
        """The mesh that its shardings are on."""
        return in_parts(mesh, self.factors)

    def sharding(self, mesh: Mesh, text: str, num_dims: int) -> NamedSharding:
        """The sharding that a text says, of an array of so many dims."""
        spec = spec_of(text)
        padded = ((),) * (num_dims - len(spec)) + spec
        return NamedSharding(self.mesh(mesh), partition_spec(padded, self.factors))

    def pins(self, loss: LossFunction, params: Any, batch: Any, mesh: Mesh) -> dict[tuple[Address, int], NamedSharding]:
        """The constraints on activations, by their place in the program of the loss."""
        program = jaxprs.trace(loss, params, batch)
        return {
            (address, output): self.sharding(mesh, self.activations[shape], len(shape))
            for address, equation in _equations(program)
            if equation.name in _CONSTRAINED
            for output, shape in enumerate(equation.output_shapes)
            if shape in self.activations
        }


def spec_of(text: str) -> Spec:
    """The spec that a text says.

    >>> spec_of("fsdp*data, -, tensor[1:2]")
    (('fsdp', 'data'), (), ('tensor[1:2]',))
    """
    return tuple(() if dim == "-" else tuple(dim.split("*")) for dim in text.split(", "))


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def state_shardings(state: Any, hand: HandWritten, mesh: Mesh) -> Any:
    """Parameters by the ends of their paths, moments as their parameter, the rest whole."""

    def sharding(key_path: Any, leaf: Any) -> NamedSharding:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        texts = [text for end, text in hand.parameters.items() if f"/{path}".endswith(f"/{end}")]
        found = next((text for text in texts if len(spec_of(text)) <= len(leaf.shape)), None)
        if found is None:
            return NamedSharding(hand.mesh(mesh), partition_spec(()))
        return hand.sharding(mesh, found, len(leaf.shape))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _equations(program: Program, outer: Address = ()) -> Iterator[tuple[Address, Equation]]:
    """All equations with their addresses, those inside custom derivatives left out."""
    for index, equation in enumerate(program.equations):
        address = (*outer, index)
        yield address, equation
        held = None if equation.name.startswith("custom_") else jaxprs.inner(equation)
        if isinstance(held, Scan):
            yield from _equations(held.body, address)
        elif isinstance(held, Call):
            yield from _equations(held.program, address)
        elif isinstance(held, Branches):
            for number, branch in enumerate(held.branches):
                yield from _equations(branch, (*address, number))
