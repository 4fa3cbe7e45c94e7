"""The optimizers and learning rate schedules: what a job says of them, and the optax transformations they are."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxscale.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A learning rate: linear warm-up from 0 to the peak, then `kind` down to the final rate, which it keeps.

    `decay_steps` is a field of its own, not the length of the run, so that extending a run never changes its past.

    Attributes:
      kind: `cosine` and `linear` reach the final rate at `decay_steps`; `constant` stays at the peak; `rsqrt` stays at
        the peak until `decay_steps` and then falls with the root of the step, toward the final rate.
      peak_learning_rate: the rate after warm-up.
      final_learning_rate: the rate from `decay_steps` on, or what `rsqrt` tends to; not used by `constant`.
      warmup_steps: the rate of step s below it is peak * (s + 1) / warmup_steps, so that step 0 learns already.
      decay_steps: the step at which the final rate is reached, or `rsqrt` leaves the peak, counted from step 0; not
        used by `constant`.

    Reference: `rsqrt`: Chowdhery et al. 2022 (PaLM), section 5, https://arxiv.org/abs/2204.02311: 0.01 for 10,000
      steps, then 1 / sqrt(k), which is 0.01 sqrt(10,000 / k).
    """

    kind: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    peak_learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 1000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.peak_learning_rate) and self.peak_learning_rate > 0):
            raise UsageError(f"peak_learning_rate={self.peak_learning_rate} must be a finite number above 0")
        if not 0 <= self.final_learning_rate <= self.peak_learning_rate:
            raise UsageError(
                f"final_learning_rate={self.final_learning_rate} must be between 0 and "
                f"peak_learning_rate={self.peak_learning_rate}"
            )
        if self.warmup_steps < 0:
            raise UsageError(f"warmup_steps={self.warmup_steps} must be at least 0")
        if self.kind != "constant" and self.decay_steps <= self.warmup_steps:
            raise UsageError(
                f"decay_steps={self.decay_steps} must be above warmup_steps={self.warmup_steps}; "
                "it counts from step 0, warm-up included"
            )

    @property
    def last_useful_step(self) -> int | None:
        """The step from which the learning rate is 0 for ever, or None where it never is."""
        ends_at_zero = self.kind in ("cosine", "linear") and self.final_learning_rate == 0.0
        return self.decay_steps if ends_at_zero else None

    def learning_rate(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The float32 learning rate of update `step`.

        Args:
          step: int32 scalar, 0 for the first update.

        >>> schedule = ScheduleConfig(kind="linear", peak_learning_rate=1.0, warmup_steps=2, decay_steps=6)
        >>> [round(float(schedule.learning_rate(s)), 3) for s in range(8)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        """
        at = jnp.asarray(step, jnp.float32)
        peak, final = jnp.float32(self.peak_learning_rate), jnp.float32(self.final_learning_rate)
        warm = jnp.minimum((at + 1) / max(self.warmup_steps, 1), jnp.float32(1))
        done = jnp.clip((at - self.warmup_steps) / max(self.decay_steps - self.warmup_steps, 1), 0.0, 1.0)
        left = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
            "linear": 1 - done,
            "constant": jnp.ones_like(done),
            "rsqrt": jnp.sqrt(self.decay_steps / jnp.maximum(at, self.decay_steps)),
        }
        return jnp.where(at < self.warmup_steps, peak * warm, final + (peak - final) * left[self.kind])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW with decoupled weight decay, and the clipping of the gradient's global norm that precedes it.

    Attributes:
      schedule: the learning rate.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the second moment's root.
      weight_decay: of every parameter, times the learning rate.
      max_grad_norm: the gradient is scaled down to this global L2 norm where it is longer; None leaves it.
      first_moment_dtype: in which the first moment is kept between updates; bfloat16 has half the bytes, and rounds it.

    Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """

    schedule: ScheduleConfig
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            if not 0 <= value < 1:
                raise UsageError(f"{name}={value} must be at least 0 and below 1")
        if not self.eps > 0:
            raise UsageError(f"eps={self.eps} must be above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight_decay={self.weight_decay} must be a finite number, at least 0")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UsageError(f"max_grad_norm={self.max_grad_norm} must be above 0, or None for no clipping")

    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation, clipping left out: the step clips, since it logs the norm anyway."""
        adamw = optax.adamw(
            self.schedule.learning_rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mu_dtype=self.first_moment_dtype,
        )

        def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            # optax's bias correction raises a Python float to an int32 power, which strict promotion refuses.
            with jax.numpy_dtype_promotion("standard"):
                updates, new_state = adamw.update(grads, state, params)
            return updates, new_state

        return optax.GradientTransformation(adamw.init, update)
