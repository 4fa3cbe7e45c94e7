"""What a run comes to: the best step so far, by its dev metric, and its end."""

import dataclasses
import math

from jaxscale.errors import UsageError
from jaxscale.train.job import Operation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Best:
    """The best dev metric so far, and the step whose checkpoint has its parameters."""

    step: int
    metric: str
    mode: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run has come to; also the values of its `finished` event."""

    step: int
    # SHA-256 of the final state: parameters, optimizer state, counters.
    state_hash: str
    # The dev metric that chose the exported parameters; None: they are the final ones.
    best: Best | None
    # Where the model is.
    model: str
    # False where the run was finished already and nothing was done.
    trained: bool


def better(operation: Operation, old: Best | None, step: int, metrics: dict[str, float]) -> Best | None:
    """The best so far after an evaluation; a tie stays with the earlier step, and NaN is never the best.

    Args:
      operation: names the metric and which way is better.
      old: the best before; None where there is none.
      step: that was evaluated.
      metrics: what the evaluation said.

    Raises:
      UsageError: the evaluation has no metric of the name that the job goes by.
    """
    name, mode = operation.best_metric, operation.best_mode
    if not name:
        return None
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none: the objective has no dev data"
        raise UsageError(f"best_metric={name!r}: the evaluation has no such metric; it has {known}")
    value = float(metrics[name])
    if math.isnan(value):
        return old
    # A best by another metric can't be compared with.
    if old is None or (old.metric, old.mode) != (name, mode):
        return Best(step=step, metric=name, mode=mode, value=value)
    improved = value > old.value if mode == "max" else value < old.value
    return dataclasses.replace(old, step=step, value=value) if improved else old
