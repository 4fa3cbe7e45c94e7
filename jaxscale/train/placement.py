"""Where a run's arrays live: the plan of its step, applied to the state, the batches and the metrics."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, spec_of
from jaxscale.sharding.derive import derive
from jaxscale.sharding.plan import ShardingPlan, batch_axes, replicated
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.objective import Objective
from jaxscale.train.pinned_loss import PinnedLoss, planned_inputs, planned_loss
from jaxscale.train.randomness import named_key
from jaxscale.train.state import State, new_state
from jaxscale.train.step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Shapes and shardings of everything that a step reads and writes."""

    mesh: Mesh
    # Of what the loss sees: with gradient accumulation a microbatch.
    plan: ShardingPlan
    # jax.ShapeDtypeStruct leaves.
    state: State
    state_shardings: Any
    # By the name of the leaf; the same for batches of every length.
    batch_shardings: dict[str, NamedSharding]
    metrics_sharding: NamedSharding

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch on the mesh, each device with its examples, and of these its positions.

        Raises:
          UsageError: a length does not divide.
        """
        return {name: self._put(name, leaf) for name, leaf in batch.items()}

    def pin(self, loss_fn: LossFn) -> LossFn:
        """The loss with the plan's activations pinned, for the step to differentiate."""
        return PinnedLoss(loss_fn, self.plan, self.mesh)

    def _put(self, name: str, leaf: np.ndarray) -> jax.Array:
        sharding = self.batch_shardings[name]
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise UsageError(
                f"batch leaf {name!r} of shape {leaf.shape} does not divide over {sharding.spec} of mesh "
                f"{spec_of(self.mesh)}; use lengths that do, or fewer devices on that axis"
            ) from error
        return jax.device_put(leaf, sharding)


def place(objective: Objective, identity: TrainingIdentity, batch: Mapping[str, np.ndarray], mesh: Mesh) -> Placement:
    """Plans a run on a mesh; nothing is computed but shapes.

    Args:
      objective: what is trained.
      identity: its batch and optimizer.
      batch: any of its batches, for names, shapes and dtypes.
      mesh: where it runs.

    Raises:
      UsageError: the batch can't be cut as grad_accum and the mesh ask.
    """
    _check_batch(batch, identity, mesh)
    state = abstract_state(objective, identity)
    plan = plan_step(objective, identity, batch, spec_of(mesh))
    return Placement(
        mesh=mesh,
        plan=plan,
        state=state,
        state_shardings=plan.shardings(mesh, state),
        batch_shardings=plan.shardings(mesh, _microbatch(batch, identity.grad_accum)),
        metrics_sharding=replicated(mesh),
    )


def plan_step(
    objective: Objective, identity: TrainingIdentity, batch: Mapping[str, np.ndarray], spec: MeshSpec
) -> ShardingPlan:
    """Where a run's arrays live on a mesh of the given spec, whose devices need not be there.

    The program that is planned is the loss of one microbatch, since that is what runs. A batch is split as its
    microbatches are: device by device they are parts of each other, see `accumulated_gradient`.

    Args:
      objective: what is trained.
      identity: its optimizer and number of microbatches.
      batch: any of its batches, for names, shapes and dtypes.
      spec: with every size resolved.

    Raises:
      UsageError: the mesh does not suit the step.
    """
    key = jax.eval_shape(lambda: named_key(identity.seed, "loss"))
    return derive(
        planned_loss(objective.loss),
        abstract_state(objective, identity)["params"],
        planned_inputs(_microbatch(batch, identity.grad_accum), key),
        spec,
        optimizer=identity.optimizer.transformation(),
    )


def abstract_state(objective: Objective, identity: TrainingIdentity) -> State:
    """The shapes of a run's state, as `jax.ShapeDtypeStruct` leaves."""
    optimizer = identity.optimizer.transformation()
    return jax.eval_shape(lambda: new_state(objective.init_params(named_key(identity.seed, "params")), optimizer))


def _microbatch(batch: Mapping[str, np.ndarray], grad_accum: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((leaf.shape[0] // grad_accum, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in batch.items()
    }


def _check_batch(batch: Mapping[str, np.ndarray], identity: TrainingIdentity, mesh: Mesh) -> None:
    size = identity.global_batch_size
    for name, leaf in batch.items():
        if leaf.shape[:1] != (size,):
            raise UsageError(
                f"batch leaf {name!r} has shape {leaf.shape}; expected global_batch_size={size} as first dim"
            )
    axes = batch_axes(mesh)
    ways = int(np.prod([mesh.shape[axis] for axis in axes], dtype=np.int64)) * identity.grad_accum
    if size % ways:
        product = "*".join([*axes, "grad_accum"])
        near = " or ".join(str(n) for n in (size // ways * ways, (size // ways + 1) * ways) if n)
        raise UsageError(f"global_batch_size={size} must be divisible by {product}={ways}; use {near}")
