"""The programs whose cost is counted: a loss, and its value and gradient, without code that nothing needs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxscale import frozen
from jaxscale.errors import UsageError
from jaxscale.sharding import jaxprs
from jaxscale.sharding.jaxprs import Program

# Takes parameters and a batch, returns a scalar.
Loss = Callable[[Any, Any], Any]


def forward_program(loss: Loss, params: Any, batch: Any) -> Program:
    """The program of the loss; its inputs are the leaves of `params`, then those of `batch`.

    Args:
      loss: a traceable function of (params, batch).
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: the same.
    """
    return without_dead_code(jaxprs.trace(loss, params, batch))


def gradient_program(loss: Loss, params: Any, batch: Any) -> Program:
    """The program of the loss and its gradient, as jax differentiates it: what `remat` computes again is in it twice.

    Its outputs are the loss, then the gradient's leaves in the order of the parameters'; a scalar zero stands for each
    parameter that is frozen.

    Args:
      loss: a traceable function of (params, batch) that returns a scalar.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: the same.
    """

    def program(params: Any, batch: Any) -> Any:
        value, gradient = frozen.value_and_grad(loss)(params, batch)
        return value, frozen.with_frozen(gradient, jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), params))

    return without_dead_code(jaxprs.trace(program, params, batch))


def without_dead_code(program: Program) -> Program:
    """The program without the equations whose results nothing needs, also inside scans and remat; same inputs.

    A compiler drops them as well; left in, the recomputation of `remat` would be counted too high.
    """
    live, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.outputs), instantiate=True)
    return Program(live)


def microbatch_of(batch: Any, num_microbatches: int) -> Any:
    """The shapes of one of `num_microbatches` equal parts of a batch; leaves without dims stay.

    Raises:
      UsageError: the examples can't be cut so.
    """

    def cut(leaf: Any) -> jax.ShapeDtypeStruct:
        if leaf.shape and leaf.shape[0] % num_microbatches:
            raise UsageError(f"num_microbatches={num_microbatches} must divide the {leaf.shape[0]} examples of a batch")
        shape = (leaf.shape[0] // num_microbatches, *leaf.shape[1:]) if leaf.shape else ()
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    if num_microbatches < 1:
        raise UsageError(f"num_microbatches={num_microbatches} must be at least 1")
    return jax.tree.map(cut, batch)
