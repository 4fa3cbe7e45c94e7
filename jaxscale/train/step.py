"""The training step, a pure function: loss, gradient, clip, update; skipped where anything is not finite."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxscale import frozen
from jaxscale.sharding.gathered import GatheredWeights
from jaxscale.sharding.per_slice import added_up
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.objective import Params
from jaxscale.train.randomness import step_key
from jaxscale.train.slice_gradients import SliceGradients
from jaxscale.train.state import State

LossFn = Callable[[Params, Mapping[str, jax.Array], PRNGKeyArray], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
Metrics = dict[str, jax.Array]


def make_step(
    loss_fn: LossFn,
    identity: TrainingIdentity,
    slices: SliceGradients | None = None,
    gathered: GatheredWeights | None = None,
) -> Callable[[State, Mapping[str, jax.Array]], tuple[State, Metrics]]:
    """The step `(state, batch) -> (state, metrics)` that minimises a loss.

    Metrics are scalars: `loss`, the loss's own, `grad_norm` (before clipping), `learning_rate`, and the counters
    `num_skipped` and `num_skipped_in_a_row`. A step whose loss or gradient is not finite leaves the parameters and the
    optimizer state as they were and is counted; the step number goes on, so that the data does. What is frozen of the
    parameters (`jaxscale.frozen`) is passed on, and has neither gradient nor state.

    Args:
      loss_fn: the mean loss of a batch or a microbatch, and its metrics; see `Objective.loss`.
      identity: microbatches and optimizer.
      slices: the same loss by slice, so that slices meet once per step; None for a mesh of one, or another loss.
      gathered: how weights are gathered once for all microbatches; None to gather them in each.
    """
    optimizer = identity.optimizer.transformation()

    def step(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, Metrics]:
        key = step_key(identity.seed, "loss", state["step"])
        (loss, extra), grads = accumulated_gradient(
            loss_fn, identity.grad_accum, state["params"], batch, key, slices, gathered
        )
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        grads = _clip(grads, grad_norm, identity.optimizer.max_grad_norm)
        params = frozen.trained(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        updated = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
        kept = {"params": params, "opt_state": state["opt_state"]}
        skipped = jnp.where(finite, 0, 1).astype(jnp.int32)
        new: State = {
            **jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated, kept),
            "step": state["step"] + 1,
            "num_skipped": state["num_skipped"] + skipped,
            "num_skipped_in_a_row": (state["num_skipped_in_a_row"] + 1) * skipped,
        }
        new["params"] = frozen.with_frozen(new["params"], state["params"])
        learning_rate = identity.optimizer.schedule.learning_rate(state["step"] - state["num_skipped"])
        counters = {name: new[name] for name in ("num_skipped", "num_skipped_in_a_row")}
        return new, {"loss": loss, **extra, "grad_norm": grad_norm, "learning_rate": learning_rate, **counters}

    return step


def accumulated_gradient(
    loss_fn: LossFn,
    grad_accum: int,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: PRNGKeyArray,
    slices: SliceGradients | None = None,
    gathered: GatheredWeights | None = None,
) -> tuple[tuple[Float[Array, ""], dict[str, Float[Array, ""]]], Params]:
    """Loss, the objective's metrics and the gradient, each the mean over `grad_accum` microbatches, in float32.

    Microbatch i holds the examples i, i + grad_accum, ...: a device that has a run of the batch has an equal run of
    every microbatch, so that cutting moves nothing between devices. With `slices` each slice accumulates a gradient of
    its own, and these are added up at the end. With `gathered` the microbatches share one copy of the weights; the
    gradient of each is scattered to where the parameters are stored before it is added, so that the sum is kept in
    parts. One microbatch has nobody to share with and is computed as without.

    Args:
      loss_fn: the mean loss of a batch, and its metrics.
      grad_accum: number of microbatches.
      params: parameters.
      batch: leaves [B, ...], B divisible by `grad_accum`.
      key: of the step; each microbatch's has its number folded in.
      slices: the same loss by slice; None to compute a microbatch whole.
      gathered: how the copy is made; None to compute with the parameters as they are stored.
    """
    value_and_grad = frozen.value_and_grad(loss_fn, has_aux=True) if slices is None else slices.value_and_grad
    if grad_accum == 1:
        result = value_and_grad(params, batch, key)
        return result if slices is None else added_up(result)
    if gathered is not None:
        value_and_grad = gathered.of_copies(value_and_grad, of_slices=slices is not None)
        params = gathered.copies(params)
    microbatches = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // grad_accum, grad_accum, *x.shape[1:]).swapaxes(0, 1), dict(batch)
    )

    def add(total: Any, numbered: tuple[jax.Array, Any]) -> tuple[Any, None]:
        number, microbatch = numbered
        result = value_and_grad(params, microbatch, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, result), None

    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: x[0], microbatches), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    numbers = jnp.arange(grad_accum, dtype=jnp.uint32)
    total, _ = jax.lax.scan(add, zeros, (numbers, microbatches))
    total = total if slices is None else added_up(total)
    return jax.tree.map(lambda x: x / jnp.asarray(grad_accum, x.dtype), total)


def _clip(grads: Params, norm: Float[Array, ""], max_norm: float | None) -> Params:
    if max_norm is None:
        return grads
    # 1 exactly where the norm is short enough, so that such a gradient is left as it is, bit for bit.
    scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
