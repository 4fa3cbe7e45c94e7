"""Adafactor: Adam with parameter scaling, its second moment whole, as PaLM has it, or factored."""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.train.optimizer import ScheduleConfig


@typed_json.union_member
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorConfig:
    """Adafactor, and the clipping of the gradient's global norm that precedes it.

    Of a gradient g of a parameter p at update k, counted from 1: v = b2 v + (1 - b2) (g^2 + 1e-30) with
    b2 = 1 - k^-decay_exponent; u = g / sqrt(v), divided by max(1, RMS(u) / max_update_rms); the step is
    learning_rate max(RMS(p), min_scale) u, averaged over updates where there is momentum; and p also loses
    learning_rate^2 p where weight is decayed. RMS is over a layer's own parameter, where layers are stacked too.

    Attributes:
      schedule: the learning rate, relative to the parameter's RMS.
      b1: decay rate of the average of steps; None keeps none.
      decay_exponent: of b2.
      max_update_rms: u is scaled down to this RMS; None leaves it.
      min_scale: the least RMS that a parameter is taken to have, so that zeros learn.
      weight_decay: whether parameters decay by learning_rate^2.
      factored: whether v is kept as means over its rows and columns where both have `min_factored_size`.
      min_factored_size: a dim below it is not factored.
      max_grad_norm: the gradient is scaled down to this global L2 norm where it is longer; None leaves it.

    Reference: Shazeer and Stern 2018, "Adafactor", algorithms 4 and 5, sections 6 (max_update_rms), 7.2
      (decay_exponent) and 8 (min_scale), https://arxiv.org/abs/1804.04235; Chowdhery et al. 2022 (PaLM), section 5
      (no factoring, b1, decay_exponent, weight_decay, max_grad_norm), https://arxiv.org/abs/2204.02311
    """

    schedule: ScheduleConfig
    b1: float | None = 0.9
    decay_exponent: float = 0.8
    max_update_rms: float | None = 1.0
    min_scale: float = 1e-3
    weight_decay: bool = True
    factored: bool = False
    min_factored_size: int = 128
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.b1 is not None and not 0 < self.b1 < 1:
            raise UsageError(f"b1={self.b1} must be above 0 and below 1, or None for no momentum")
        if not 0 < self.decay_exponent <= 1:
            raise UsageError(f"decay_exponent={self.decay_exponent} must be above 0 and at most 1; 0.8 is usual")
        if not (math.isfinite(self.min_scale) and self.min_scale > 0):
            raise UsageError(f"min_scale={self.min_scale} must be a finite number above 0")
        if self.min_factored_size < 1:
            raise UsageError(f"min_factored_size={self.min_factored_size} must be at least 1")
        for name in ("max_update_rms", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name}={value} must be above 0, or None for no clipping")

    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation, clipping of the gradient's norm left out: the step clips."""
        second_moment = optax.scale_by_factored_rms(
            factored=self.factored, decay_rate=self.decay_exponent, min_dim_size_to_factor=self.min_factored_size
        )

        def init(params: Any) -> AdafactorState:
            momentum = None if self.b1 is None else jax.tree.map(jnp.zeros_like, params)
            return AdafactorState(second_moment.init(params), momentum)

        def update(grads: Any, state: AdafactorState, params: Any = None) -> tuple[Any, AdafactorState]:
            rate = self.schedule.learning_rate(state.second_moment.count)
            # optax raises steps to Python floats, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                directions, new_moment = second_moment.update(grads, state.second_moment, params)
            steps = jax.tree_util.tree_map_with_path(
                lambda path, u, p: rate * self._scaled(u, p, num_stacked=_num_stacked(path)), directions, params
            )
            momentum = None
            if self.b1 is not None:
                b1 = self.b1
                steps = momentum = jax.tree.map(lambda m, s: b1 * m + (1 - b1) * s, state.momentum, steps)
            decay = jnp.square(rate) if self.weight_decay else jnp.zeros_like(rate)
            return jax.tree.map(lambda s, p: -(s + decay * p), steps, params), AdafactorState(new_moment, momentum)

        return optax.GradientTransformation(init, update)

    def _scaled(self, update: Float[Array, "*P"], param: Float[Array, "*P"], *, num_stacked: int) -> Float[Array, "*P"]:
        if self.max_update_rms is not None:
            update = update / jnp.maximum(1.0, _rms(update, num_stacked) / self.max_update_rms)
        return update * jnp.maximum(_rms(param, num_stacked), self.min_scale)


class AdafactorState(NamedTuple):
    """What is kept between updates.

    Attributes:
      second_moment: v, whole or factored, and the number of updates.
      momentum: the average of steps, like the parameters; None without.
    """

    second_moment: Any
    momentum: Any


def _rms(x: Float[Array, "*P"], num_stacked: int) -> Float[Array, "*Q"]:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(num_stacked, x.ndim)), keepdims=True))


def _num_stacked(path: tuple[Any, ...]) -> int:
    """How many leading dims of a leaf number layers: 1 below a stack `layers`, as `functional.Params` has it."""
    keys = [getattr(entry, "key", None) for entry in path]
    pairs = itertools.pairwise(keys)
    return int(any(key == "layers" and not isinstance(after, int) for key, after in pairs))
