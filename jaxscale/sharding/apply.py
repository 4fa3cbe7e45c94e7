"""Applies a plan to a loss: its activations pinned, and computed with parameters as they are stored."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.stored import Replacing, compute_stored


def apply_plan(
    plan: ShardingPlan,
    loss: Callable[..., Any],
    mesh: Mesh,
    params: Any,
    *inputs: Any,
    replacing: Replacing | None = None,
) -> Callable[..., Any]:
    """The loss as it is to be computed on the mesh: what training differentiates, with no annotation in the model.

    It takes the parameters as they are stored (`store_leaves(params, plan.layouts(params))`, or as `initialise` and
    `place` make them) and its gradients are in the same order.

    Args:
      plan: derived from this loss, its inputs taken as one batch where they are several.
      loss: of (params, *inputs); it may return more than a scalar, but nothing in a stored order.
      mesh: of the plan's spec.
      params: arrays or `jax.ShapeDtypeStruct`, of the logical shapes, which are the stored ones too.
      *inputs: a batch, and a key where the loss takes one, of the shapes the loss will be called with; of a microbatch
        where the step accumulates gradients.
      replacing: as for `compute_stored`.

    Raises:
      UsageError: the mesh has another spec; the loss depends on the order of a dim that is stored in another one; or
        an activation of these shapes does not divide as planned. Nothing has been compiled then.
    """
    pins, islands = plan.activation_shardings(mesh), plan.islands_on(mesh)
    return compute_stored(loss, plan.layouts(params), params, *inputs, pins=pins, islands=islands, replacing=replacing)
