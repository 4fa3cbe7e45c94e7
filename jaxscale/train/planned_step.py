"""What a training step computes, on shapes alone: all that a plan, a cost or a compilation asks of a job."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxscale.cost.programs import forward_program, microbatch_of
from jaxscale.mesh import MeshSpec
from jaxscale.nn.attention_choice import AttentionSetting
from jaxscale.nn.attention_kernels import replacing
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.derive import derive
from jaxscale.sharding.gathered import GatheredWeights, gathered_weights
from jaxscale.sharding.limits import DEFAULT_LIMITS, Limits
from jaxscale.sharding.per_slice import part_plan
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.train.batch_shapes import check_divides
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.objective import Params
from jaxscale.train.slice_gradients import SliceGradients, Weight
from jaxscale.train.step import accumulated_gradient

Loss = Callable[[Params, Mapping[str, jax.Array]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A training step of which nothing has been computed and for which no data has been read.

    Attributes:
      loss: the float32 mean loss of a batch, or of a microbatch of it; pure and traceable.
      params: a tree of `jax.ShapeDtypeStruct`: the master weights.
      batch: the global batch, `jax.ShapeDtypeStruct` by name; leading dim of every leaf: the examples.
      optimizer: the transformation whose state goes along.
      num_tokens: tokens in a global batch, over all its leaves that the model reads.
      grad_accum: microbatches per step.
      part_weight: of a part of a batch in its loss; None where the loss is no mean of its parts'. See `AveragesParts`.
      loss_on: `loss` as it is computed on one mesh, and lines that say what is done there by hand; None where the loss
        is one program on all. See `KnowsMesh`.
      notes: such lines, of a step that was asked for on a mesh.
    """

    loss: Loss
    params: Params
    batch: dict[str, jax.ShapeDtypeStruct]
    optimizer: optax.GradientTransformation
    num_tokens: int
    grad_accum: int = 1
    part_weight: Weight | None = None
    loss_on: Callable[[MeshSpec], tuple[Loss, tuple[str, ...]]] | None = None
    notes: tuple[str, ...] = ()

    def on(self, mesh: MeshSpec) -> "PlannedStep":
        """The step as it is computed on a mesh: what a plan for that mesh is derived from and applied to.

        Args:
          mesh: with every size resolved.

        Raises:
          UsageError: the loss can't be computed there.
        """
        if self.loss_on is None:
            return self
        loss, notes = self.loss_on(mesh)
        return dataclasses.replace(self, loss=loss, loss_on=None, notes=notes)

    @property
    def microbatch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes that the loss is computed on, and that a plan is derived from: of one microbatch."""
        made: dict[str, jax.ShapeDtypeStruct] = microbatch_of(self.batch, self.grad_accum)
        return made

    def gradient(self, params: Params, batch: Mapping[str, jax.Array]) -> tuple[Float[Array, ""], Params]:
        """The loss and its gradient, each the mean over `grad_accum` microbatches, cut as the training step cuts them.

        Args:
          params: arrays of the shapes of `params`.
          batch: arrays of the shapes of `batch`.
        """
        (loss, _), gradient = accumulated_gradient(
            lambda params, batch, key: (self.loss(params, batch), {}),
            self.grad_accum,
            params,
            batch,
            jax.random.key(0, impl="threefry2x32"),  # of no effect: the loss takes none
        )
        return loss, gradient


def derive_step(step: PlannedStep, mesh: MeshSpec, *, limits: Limits = DEFAULT_LIMITS) -> ShardingPlan:
    """The plan of a training step: derived from the loss of one microbatch, which is what runs.

    Args:
      step: what is computed; as it is `on` that mesh, where the mesh changes it.
      mesh: with every size resolved; its devices need not be there.
      limits: what is small, and what is too much to copy.

    Raises:
      UsageError: the batch can't be shared out, or the mesh does not suit the step.
    """
    num_examples = next(iter(step.batch.values())).shape[0]
    check_divides(num_examples, step.grad_accum, mesh)
    return derive(step.loss, step.params, step.microbatch, mesh, optimizer=step.optimizer, limits=limits)


def weights_of_step(step: PlannedStep, plan: ShardingPlan, mesh: Mesh) -> GatheredWeights | None:
    """How the weights are gathered once for all microbatches; None for one of these, or where `fsdp` splits nothing.

    Args:
      step: what is computed.
      plan: of `derive_step`.
      mesh: of the plan's spec.
    """
    if step.grad_accum == 1:
        return None
    program = forward_program(step.loss, step.params, step.microbatch)
    made: GatheredWeights | None = gathered_weights(plan, mesh, step.params, program)
    return made


def slice_gradients(
    step: PlannedStep,
    plan: ShardingPlan,
    mesh: Mesh,
    *,
    attention: AttentionSetting = "plain",
    gathered: GatheredWeights | None = None,
) -> SliceGradients | None:
    """How the slices of a mesh compute the step's gradient apart; None on one slice, or where they can't.

    Args:
      step: what is computed.
      plan: of `derive_step`.
      mesh: of the plan's spec.
      attention: what computes it.
      gathered: how the weights are gathered once for all microbatches; None where each gathers them.
    """
    if plan.mesh.slice == 1 or step.part_weight is None:
        return None
    part = microbatch_of(step.microbatch, plan.mesh.slice)
    inside = part_plan(plan)
    loss = apply_plan(inside, step.loss, mesh, step.params, part, replacing=replacing(inside, mesh, attention))
    return SliceGradients(
        loss=lambda params, part, key: (loss(params, part), {}),
        weight=step.part_weight,
        num_slices=plan.mesh.slice,
        batch_shardings=inside.shardings(mesh, part),
        parameter_shardings=inside.shardings(mesh, step.params) if gathered is None else gathered.whole,
        gradient_shardings=inside.shardings(mesh, step.params),
    )


def gathers_once(job: "PlannableJob") -> bool:
    """Whether the job's microbatches share weights that are gathered once; not where it doesn't say."""
    operation: Operation | None = getattr(job, "operation", None)
    return operation is not None and operation.gather_weights == "step"


class PlannableJob(Protocol):
    """A job whose step can be explained and planned before there is any data."""

    @property
    def training(self) -> TrainingIdentity:
        """Batch, microbatches, optimizer and number format of the step."""
        ...

    @property
    def operation(self) -> Operation:
        """Its `mesh` is the one asked about where no other is named."""
        ...

    def planned_step(self) -> PlannedStep:
        """The step. Reads no data.

        Raises:
          UsageError: the job's parts do not fit each other, or lack something; naming the field and what to do.
        """
        ...
