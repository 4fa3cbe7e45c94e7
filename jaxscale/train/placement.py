"""Where a run's arrays live: the plan of its step, applied to the loss, the state, the batches and the metrics."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxscale.cost.programs import forward_program, microbatch_of
from jaxscale.errors import UsageError
from jaxscale.mesh import spec_of
from jaxscale.nn.attention_choice import AttentionSetting
from jaxscale.nn.attention_kernels import described
from jaxscale.sharding.derive import derive
from jaxscale.sharding.gathered import GatheredWeights, gathered_weights
from jaxscale.sharding.layouts import Layouts
from jaxscale.sharding.per_slice import part_plan
from jaxscale.sharding.plan import ShardingPlan, replicated
from jaxscale.sharding.reorder import restore_on_mesh, store_on_mesh
from jaxscale.train.batch_shapes import BatchShapes, Bucket, bucket_of, bucket_text, check_divides
from jaxscale.train.job import GatherWeights, TrainingIdentity
from jaxscale.train.objective import AveragesParts, Batch, KnowsMesh, Objective, Params
from jaxscale.train.pinned_loss import pinned_loss, planned_inputs, planned_loss
from jaxscale.train.randomness import named_key
from jaxscale.train.slice_gradients import SliceGradients
from jaxscale.train.state import State, new_state
from jaxscale.train.step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Shapes, shardings and orders of storage of everything that a step reads and writes.

    Attributes:
      mesh: where the run is.
      plan: of what the loss sees: with gradient accumulation a microbatch.
      loss: the objective's, its activations pinned, of parameters as they are stored.
      attention: what computes it in that loss, and why, for people; by the bucket of a batch.
      slices: the same by slice; None on one slice, or where the loss is no mean of its parts'.
      gathered: how weights are gathered once for all microbatches; None where each gathers them.
      state: `jax.ShapeDtypeStruct` leaves.
      state_shardings: a tree like the state.
      layouts: of the state's leaves that are stored in another order than the logical, by position.
      batch_shardings: by the name of the leaf; the same for batches of every length.
      buckets: of all batches.
      metrics_sharding: of every metric.
    """

    mesh: Mesh
    plan: ShardingPlan
    loss: LossFn
    attention: Mapping[Bucket, tuple[str, ...]]
    slices: SliceGradients | None
    gathered: GatheredWeights | None
    state: State
    state_shardings: Any
    layouts: Layouts
    batch_shardings: dict[str, NamedSharding]
    buckets: frozenset[Bucket]
    metrics_sharding: NamedSharding

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch on the mesh, each device with its examples, and of these its positions.

        Raises:
          UsageError: its shapes are none of those that the objective named.
        """
        self._check_shapes(batch)
        return jax.device_put(dict(batch), self.batch_shardings)

    def load_batch(self, rows_of: Callable[[slice], Batch], size: int) -> dict[str, jax.Array]:
        """A batch on the mesh, of which this process makes those rows only that its devices hold.

        Args:
          rows_of: makes rows of the batch.
          size: of the whole batch.

        Raises:
          UsageError: as `put_batch`.
        """
        rows = self._rows_of_this_process(size)
        batch = rows_of(rows)
        if rows == slice(0, size):
            return self.put_batch(batch)
        whole = {name: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch.items()}
        self._check_shapes(whole)

        def put(name: str, leaf: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # every leaf has rows
                start, stop, _ = index[0].indices(size)
                part_of_rows: np.ndarray = leaf[(slice(start - rows.start, stop - rows.start), *index[1:])]
                return part_of_rows

            return jax.make_array_from_callback(whole[name].shape, self.batch_shardings[name], part)

        return {name: put(name, leaf) for name, leaf in batch.items()}

    def _rows_of_this_process(self, size: int) -> slice:
        """From the first to the last row that a device of this process holds, of batches of so many."""
        bucket = next((bucket for bucket in sorted(self.buckets) if bucket[0][1][0] == size), ())
        parts = [
            (index or (slice(None),))[0].indices(size)
            for name, shape, _ in bucket
            for index in self.batch_shardings[name].addressable_devices_indices_map(shape).values()
        ]
        first = min((start for start, _, _ in parts), default=0)
        return slice(first, max((stop for _, stop, _ in parts), default=size))

    def _check_shapes(self, batch: Mapping[str, Any]) -> None:
        if bucket_of(batch) not in self.buckets:
            known = "; ".join(map(bucket_text, sorted(self.buckets)))
            raise UsageError(
                f"a batch of {bucket_text(bucket_of(batch))} is not among objective.batch_shapes(), which are {known}"
            )

    def to_stored(self, state: State) -> State:
        """A state on the mesh, in its logical order, as the step takes it."""
        made: State = store_on_mesh(state, self.layouts)
        return made

    def to_logical(self, state: State) -> State:
        """The exact inverse of `to_stored`; leaves that are in their logical order are passed on, not copied."""
        made: State = restore_on_mesh(state, self.layouts)
        return made


def place(
    objective: Objective, identity: TrainingIdentity, mesh: Mesh, gather_weights: GatherWeights = "microbatch"
) -> Placement:
    """Plans a run on a mesh, for every batch that the objective can make; nothing is computed but shapes.

    Args:
      objective: what is trained.
      identity: its batch and optimizer.
      mesh: where it runs.
      gather_weights: see `Operation`.

    Raises:
      UsageError: a batch can't be cut as grad_accum and the mesh ask, or be computed as the plan says.
    """
    spec, batches = spec_of(mesh), objective.batch_shapes()
    if isinstance(objective, KnowsMesh):
        objective = objective.on(spec)
    sizes = identity.batch_sizes.distinct
    for size in sizes:
        check_divides(size, identity.grad_accum, spec)
    _check_alike(batches, sizes)
    state = abstract_state(objective, identity)
    key = jax.eval_shape(lambda: named_key(identity.seed, "loss"))
    # What runs, and so what is planned, is the loss of a microbatch. Device by device it is a part of its batch, see
    # `accumulated_gradient`, and so a batch is split as its microbatches are.
    microbatches = [microbatch_of(dict(batch), identity.grad_accum) for batch in batches]
    largest = max(microbatches, key=_num_values)
    inputs, optimizer = planned_inputs(largest, key), identity.optimizer.transformation()
    plan = derive(planned_loss(objective.loss), state["params"], inputs, spec, optimizer=optimizer)
    attention, gathered = identity.attention, None
    if gather_weights == "step" and identity.grad_accum > 1:
        program = forward_program(lambda *args: planned_loss(objective.loss)(*args)[0], state["params"], inputs)
        gathered = gathered_weights(plan, mesh, state["params"], program)
    return Placement(
        mesh=mesh,
        plan=plan,
        loss=pinned_loss(objective.loss, plan, mesh, state["params"], microbatches, key, attention=attention),
        attention={
            bucket_of(batch): described(
                planned_loss(objective.loss), plan, mesh, attention, state["params"], planned_inputs(microbatch, key)
            )
            for batch, microbatch in zip(batches, microbatches, strict=True)
        },
        slices=_slices(objective, attention, plan, mesh, state["params"], microbatches, key, gathered),
        gathered=gathered,
        state=state,
        state_shardings=plan.shardings(mesh, state),
        layouts=plan.layouts(state),
        batch_shardings=plan.shardings(mesh, largest),
        buckets=frozenset(map(bucket_of, batches)),
        metrics_sharding=replicated(mesh),
    )


def abstract_state(objective: Objective, identity: TrainingIdentity) -> State:
    """The shapes of a run's state, as `jax.ShapeDtypeStruct` leaves."""
    optimizer = identity.optimizer.transformation()
    return jax.eval_shape(lambda: new_state(objective.init_params(named_key(identity.seed, "params")), optimizer))


def _slices(
    objective: Objective,
    attention: AttentionSetting,
    plan: ShardingPlan,
    mesh: Mesh,
    params: Params,
    microbatches: Sequence[BatchShapes],
    key: Any,
    gathered: GatheredWeights | None,
) -> SliceGradients | None:
    weight = objective.part_weight if isinstance(objective, AveragesParts) else None
    if plan.mesh.slice == 1 or weight is None:
        return None
    inside, largest = part_plan(plan), max(microbatches, key=_num_values)
    return SliceGradients(
        loss=pinned_loss(objective.loss, plan, mesh, params, microbatches, key, attention=attention, of_slices=True),
        weight=weight,
        num_slices=plan.mesh.slice,
        batch_shardings=inside.shardings(mesh, microbatch_of(dict(largest), plan.mesh.slice)),
        parameter_shardings=inside.shardings(mesh, params) if gathered is None else gathered.whole,
        gradient_shardings=inside.shardings(mesh, params),
    )


def _num_values(batch: BatchShapes) -> int:
    return sum(math.prod(leaf.shape) for leaf in batch.values())


def _check_alike(batches: Sequence[BatchShapes], sizes: Sequence[int]) -> None:
    if not batches:
        raise UsageError("objective.batch_shapes() names no batch; name the shapes of every batch it makes")
    for batch in batches:
        if batch.keys() != batches[0].keys():
            raise UsageError(
                f"batches have the leaves {sorted(batch)} and {sorted(batches[0])}; give all the same ones"
            )
        wanted = " or ".join(map(str, sizes))
        for name, leaf in batch.items():
            if leaf.shape[:1] not in [(size,) for size in sizes]:
                raise UsageError(
                    f"batch leaf {name!r} has shape {leaf.shape}; expected global_batch_size={wanted} as first dim"
                )
