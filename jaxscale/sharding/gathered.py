"""Copies of the weights that are whole over `fsdp`, made once for several computations that read them.

Left to itself each computation gathers what it reads, once forward and once backward. A copy is as narrow as the weight
is read: one that is only cast is cast before it is gathered, so that the network carries, and the memory holds, what is
computed with. What is looked up row by row is left where it is: rows are exchanged, and nobody gathers the table. So is
what a function of `on_parts` takes as it is stored, and gathers by itself in every microbatch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale import frozen
from jaxscale.mesh import axis_of
from jaxscale.sharding.first_reads import first_casts, only_looked_up, taken_in_parts
from jaxscale.sharding.jaxprs import Program
from jaxscale.sharding.per_slice import kept_apart
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan

# The axis over which weights are stored in parts but not computed with.
AXIS = "fsdp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatheredWeights:
    """How a tree of parameters is gathered, and its gradient scattered.

    Attributes:
      stored: shardings, a tree like the parameters.
      whole: the shardings of the copies.
      dtypes: of the copies.
      parameter_dtypes: of the parameters.
    """

    stored: Any
    whole: Any
    dtypes: Any
    parameter_dtypes: Any

    def copies(self, params: Any) -> Any:
        """The copies of parameters; every leaf that is whole already is passed on.

        Args:
          params: a tree of arrays, as they are stored.
        """
        return jax.tree.map(_gathered, params, self.dtypes, self.stored, self.whole)

    def of_copies(self, value_and_grad: Callable[..., Any], *, of_slices: bool = False) -> Callable[..., Any]:
        """A function of parameters, as one of their copies; the gradient it returns is where parameters are stored.

        Args:
          value_and_grad: of (params, ...), returns (values, gradient).
          of_slices: whether the gradient has a leading dim, one for each slice; see `per_slice`.
        """
        scattered = kept_apart if of_slices else jax.lax.with_sharding_constraint

        def computed(copies: Any, *inputs: Any) -> tuple[Any, Any]:
            # As wide as the parameters again, for the sake of the gradient's dtype; the program's own casts undo that.
            params = jax.tree.map(lambda copy, dtype: copy.astype(dtype), copies, self.parameter_dtypes)
            values, gradient = value_and_grad(params, *inputs)
            return values, scattered(gradient, frozen.trained(self.stored))

        return computed


def gathered_dtypes(leaves: Sequence[PlannedLeaf], program: Program) -> tuple[Any, ...]:
    """The dtype in which each parameter is gathered; None for one that is not.

    Args:
      leaves: of a plan, the parameters first.
      program: of the loss; its first inputs are the parameters.
    """
    casts, left = first_casts(program), only_looked_up(program) | taken_in_parts(program)

    def dtype_of(leaf: PlannedLeaf, variable: Any) -> Any:
        if variable in left or not any(axis_of(axis) == AXIS for axes in leaf.spec for axis in axes):
            return None
        own, read = variable.aval.dtype, casts.get(variable, variable.aval.dtype)
        return read if read.itemsize < own.itemsize else own

    params = [leaf for leaf in leaves if leaf.role == "parameter"]
    return tuple(dtype_of(leaf, variable) for leaf, variable in zip(params, program.inputs, strict=False))


def gathered_weights(plan: ShardingPlan, mesh: Mesh, params: Any, program: Program) -> GatheredWeights | None:
    """How the plan's parameters are gathered; None where none is stored in parts over `fsdp`.

    Args:
      plan: of the loss.
      mesh: of the plan's spec.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      program: of the loss; its first inputs are the parameters' leaves.
    """
    dtypes = gathered_dtypes(plan.leaves, program)
    if all(dtype is None for dtype in dtypes):
        return None
    leaves, structure = jax.tree.flatten(params)
    stored = jax.tree.leaves(plan.shardings(mesh, params))
    own = [leaf.dtype for leaf in leaves]
    whole = [at if dtype is None else _without_axis(at) for at, dtype in zip(stored, dtypes, strict=True)]
    read = [mine if dtype is None else dtype for mine, dtype in zip(own, dtypes, strict=True)]
    made = (jax.tree.unflatten(structure, values) for values in (stored, whole, read, own))
    return GatheredWeights(**dict(zip(("stored", "whole", "dtypes", "parameter_dtypes"), made, strict=True)))


def _gathered(param: jax.Array, dtype: Any, stored: NamedSharding, whole: NamedSharding) -> jax.Array:
    if stored == whole:
        return param
    # Cast where it is stored, and gathered then.
    narrow = jax.lax.with_sharding_constraint(param.astype(dtype), stored)
    return jax.lax.with_sharding_constraint(narrow, whole)


def _without_axis(sharding: NamedSharding) -> NamedSharding:
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in sharding.spec]
    kept = [tuple(name for name in entry if name is not None and axis_of(name) != AXIS) or None for entry in entries]
    return NamedSharding(sharding.mesh, P(*kept))
