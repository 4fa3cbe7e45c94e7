"""Loss spikes: a loss far above those just before it, by a measure that the spikes themselves hardly move."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from jaxscale.errors import UsageError

# The standard deviation of a normal distribution over its median absolute deviation.
# Reference: Rousseeuw and Croux 1993, Alternatives to the Median Absolute Deviation, section 1,
# https://doi.org/10.1080/01621459.1993.10476408
_SIGMA_PER_MAD = 1.4826


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """When a loss is a spike, and what is left out after it.

    Reference: Chowdhery et al. 2022 (PaLM), section 5.1, https://arxiv.org/abs/2204.02311: restart from a checkpoint
    about 100 steps before the spike and skip 200 to 500 batches.

    Attributes:
      window: losses just before a step that its own is compared with; before that many are there, nothing is a spike.
      threshold: the robust z-score above which a loss is a spike.
      num_batches_before: batches left out besides the spike's own, those trained on just before it.
      num_batches_after: and those that would have come just after it.
      max_rollbacks: spikes ridden out in a run; at the next one it has diverged.
    """

    window: int = 128
    threshold: float = 12.0
    num_batches_before: int = 0
    num_batches_after: int = 0
    max_rollbacks: int = 10

    def __post_init__(self) -> None:
        if self.window < 3:
            raise UsageError(f"window={self.window} must be at least 3: of fewer losses the spread says nothing")
        if not 0 < self.threshold < math.inf:
            raise UsageError(f"threshold={self.threshold} must be finite and above 0")
        for name in ("num_batches_before", "num_batches_after", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")


def robust_z_score(loss: float, window: Sequence[float]) -> float:
    """How far a loss lies above the losses before it: (loss - median) / (1.4826 MAD).

    MAD is the median of the distances from the median. Up to half of the window may be spikes and hardly move either.

    Args:
      loss: of this step; finite.
      window: losses of the steps before it, finite, at least one.

    Returns:
      The score; where the window does not vary at all, 0 for the same loss and infinity, with its sign, for another.

    >>> round(robust_z_score(5.0, [1.0, 2.0, 3.0, 4.0, 100.0]), 3)
    1.349
    """
    median = statistics.median(window)
    spread = _SIGMA_PER_MAD * statistics.median(abs(value - median) for value in window)
    distance = loss - median
    if spread == 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / spread


def spike_score(loss: float, window: Sequence[float], config: SpikeConfig) -> float | None:
    """The z-score of a loss that is a spike, or None where it is none.

    A loss that is not finite is no spike: the device has left its step out by itself.

    Args:
      loss: of this step.
      window: finite losses of the steps before it, oldest first.
      config: when a loss is a spike.
    """
    if len(window) < config.window or not math.isfinite(loss):
        return None
    score = robust_z_score(loss, window[-config.window :])
    return score if score > config.threshold else None


def with_loss(window: tuple[float, ...], loss: float, config: SpikeConfig) -> tuple[float, ...]:
    """The window for the next step: a finite loss comes in, the oldest goes.

    >>> with_loss((1.0, 2.0, 3.0), 4.0, SpikeConfig(window=3))
    (2.0, 3.0, 4.0)
    """
    return (*window, loss)[-config.window :] if math.isfinite(loss) else window
