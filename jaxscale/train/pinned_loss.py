"""The loss that the step differentiates: the objective's as the plan says, a program for each shape of its batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxscale.cost.programs import microbatch_of
from jaxscale.errors import UsageError
from jaxscale.nn.attention_choice import AttentionSetting, has_kernel
from jaxscale.nn.attention_kernels import platform_of, replacing
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.per_slice import part_plan
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.rewrite import trace
from jaxscale.sharding.same_places import derive_like
from jaxscale.train.batch_shapes import BatchShapes, bucket_of, bucket_text
from jaxscale.train.objective import Params
from jaxscale.train.step import LossFn

# The key among the leaves of the batch that the plan is derived from; no name that a leaf would have.
_KEY = "(key)"


def pinned_loss(
    loss_fn: LossFn,
    plan: ShardingPlan,
    mesh: Mesh,
    params: Params,
    microbatches: Sequence[BatchShapes],
    key: Any,
    *,
    attention: AttentionSetting,
    of_slices: bool = False,
) -> LossFn:
    """The loss with its activations pinned, of parameters as the plan stores them, and its attention by kernels.

    On one device, where no kernel takes the place of an attention, it is the loss itself.

    Its programs are those that plans are derived from, to the key, which is an argument of both. The parameters and the
    batch are in every one of them where `plan` has them, the activations where that program's own plan does.

    Args:
      loss_fn: the objective's.
      plan: derived from `planned_loss(loss_fn)`, for one of the microbatches.
      mesh: of the plan's spec.
      params: shapes, as `jax.ShapeDtypeStruct`.
      microbatches: the shapes of all that the loss will be called with.
      key: the shape of a key.
      attention: what computes the attention of `jaxscale.nn`; see `TrainingIdentity.attention`.
      of_slices: whether to make the loss of the part that one slice has of each microbatch; see `per_slice`.

    Raises:
      UsageError: a microbatch can't be computed with the parameters where they are; it is named with the leaf. Nothing
        has been compiled then.
    """
    if mesh.size == 1 and not has_kernel(attention, platform_of(mesh)):
        return loss_fn
    programs = {
        bucket_of(batch): _program(loss_fn, plan, mesh, params, batch, key, attention, of_slices)
        for batch in microbatches
    }

    def loss(
        params: Params, batch: Mapping[str, jax.Array], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        made: tuple[Float[Array, ""], dict[str, Float[Array, ""]]] = programs[bucket_of(batch)](params, batch, key)
        return made

    return loss


def planned_loss(loss_fn: LossFn) -> Any:
    """The loss as a function of parameters and inputs, for `derive`."""

    def loss(params: Params, inputs: Mapping[str, Any]) -> Any:
        return loss_fn(params, {name: leaf for name, leaf in inputs.items() if name != _KEY}, inputs[_KEY])

    return loss


def planned_inputs(batch: BatchShapes, key: Any) -> dict[str, Any]:
    """The inputs of `planned_loss`."""
    return {**batch, _KEY: key}


def _program(
    loss_fn: LossFn,
    plan: ShardingPlan,
    mesh: Mesh,
    params: Params,
    batch: BatchShapes,
    key: Any,
    attention: AttentionSetting,
    of_slices: bool,
) -> LossFn:
    inputs = planned_inputs(batch, key)
    planned = {leaf.path: leaf.shape for leaf in plan.leaves if leaf.role == "batch"}
    try:
        if planned != {name: leaf.shape for name, leaf in inputs.items()}:
            plan = derive_like(plan, planned_loss(loss_fn), params, inputs)
        if of_slices:
            plan, batch = part_plan(plan), microbatch_of(dict(batch), plan.mesh.slice)
        kernels = replacing(plan, mesh, attention)
        if mesh.size == 1 and (kernels is None or not kernels(trace(loss_fn, params, dict(batch), key).jaxpr)):
            return loss_fn
        program: LossFn = apply_plan(plan, loss_fn, mesh, params, dict(batch), key, replacing=kernels)
    except UsageError as error:
        raise UsageError(f"a microbatch of {bucket_text(bucket_of(batch))}: {error}") from error
    return program
