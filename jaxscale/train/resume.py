"""What may differ between the command that began a run and the one that resumes it; anything else is refused."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.train.data_order import DataOrder
from jaxscale.train.job import GatherWeights
from jaxscale.train.result import Best

_NUM_STEPS = "training.num_steps"
_NUM_NAMED_CHANGES = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One field that differs; a side that lacks it has None."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.old)} -> {_shown(self.new)}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The fields in which two trees of JSON values differ, by dotted path, sorted.

    >>> [str(c) for c in changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": True})]
    ['a.b: 1 -> 3', 'd: (none) -> true']
    """
    before, after = _flat("", old), _flat("", new)
    return [
        Change(field=name, old=before.get(name), new=after.get(name))
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or before[name] != after[name]
    ]


def check_identity(out: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change | None:
    """Refuses another job's folder; a longer `training.num_steps` is the one change of identity allowed.

    A schedule's decay length is a field of its own, so a longer run has the same past as a shorter one.

    Args:
      out: the run folder, for the message.
      old: the identity in its job.json.
      new: the identity of the job at hand.

    Returns:
      The change of `num_steps`, or None.

    Raises:
      UsageError: naming every field that differs, with both values.
    """
    found = changes(old, new)
    refused = [c for c in found if c.field != _NUM_STEPS]
    if refused:
        named = "".join(f"\n  {c}" for c in refused[:_NUM_NAMED_CHANGES])
        more = f"\n  and {len(refused) - _NUM_NAMED_CHANGES} more" if len(refused) > _NUM_NAMED_CHANGES else ""
        raise UsageError(
            f"{out} holds the run of another job; changed:{named}{more}\n"
            f"  use another --out, or go on from its state as a new run with --out NEW --fork-from {out}"
        )
    if found and found[0].new < found[0].old:
        raise UsageError(
            f"num_steps={found[0].new} is below the {found[0].old} that {out} was begun with; a run can be made "
            "longer, not shorter: use another --out"
        )
    return found[0] if found else None


def past_sha256(identity: Mapping[str, Any]) -> str:
    """The hash of all that a run's past depends on: its identity without `training.num_steps`.

    >>> past_sha256({"training": {"num_steps": 1, "seed": 2}}) == past_sha256({"training": {"num_steps": 9, "seed": 2}})
    True
    """
    flat = _flat("", identity)
    return typed_json.fingerprint({name: flat[name] for name in flat if name != _NUM_STEPS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fork:
    """A run that another one begins from."""

    run: Path
    # The checkpoint to begin from; None: its newest.
    step: int | None

    @classmethod
    def parse(cls, text: str) -> "Fork":
        """`RUN` or `RUN@step`.

        Raises:
          UsageError: the step is no whole number, or there is no such run folder.

        >>> Fork.parse("runs/a@x")
        Traceback (most recent call last):
        ...
        jaxscale.errors.UsageError: --fork-from runs/a@x: got step 'x', expected a whole number, as in RUN@400
        """
        if (Path(text) / "job.json").is_file():
            return cls(run=Path(text), step=None)
        folder, at, step = text.rpartition("@")
        if at and not step.isdigit():
            raise UsageError(f"--fork-from {text}: got step {step!r}, expected a whole number, as in RUN@400")
        if not at or not (Path(folder) / "job.json").is_file():
            raise UsageError(f"--fork-from {text}: {folder or text} is not a run folder: it has no job.json")
        return cls(run=Path(folder), step=int(step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What a checkpoint must say besides the state, so that the loop goes on as if it had never stopped."""

    step: int
    # The last step at which the dev metric was computed; None: never.
    last_evaluated: int | None
    best: Best | None
    # Of the process that wrote it: what must be equal for a bitwise equal continuation.
    environment: dict[str, Any]
    mesh: str
    # Of the identity without `training.num_steps`, which may grow.
    past_sha256: str
    # Of the batches that the steps from here on train on.
    order: DataOrder
    # Of the steps just before, as many as a spike is judged by; and the spikes that were rolled back from.
    recent_losses: tuple[float, ...] = typed_json.added(())
    num_rollbacks: int = typed_json.added(0)
    # Of the operation, as the mesh is: it rounds the sum of the gradient.
    gather_weights: GatherWeights = typed_json.added("microbatch")  # noqa: RUF009

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values: dict[str, Any] = typed_json.encode(self)
        return values

    @classmethod
    def from_json(cls, values: Any, where: str) -> "Progress":
        """The inverse of `to_json`.

        Raises:
          DataError: naming the field that is wrong; `where` names the file.
        """
        if isinstance(values, dict) and "order" not in values:  # from before any batch could be passed over
            values = {**values, "order": {"next_number": values.get("step"), "skipped": []}}
        return typed_json.decode(cls, values, where)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        nested = [_flat(f"{prefix}.{name}" if prefix else name, item) for name, item in value.items()]
        return {path: leaf for part in nested for path, leaf in part.items()}
    return {prefix: value}


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    try:
        return typed_json.canonical(value).decode()
    except (TypeError, ValueError) as error:
        raise DataError(f"an identity holds {value!r}, which is no JSON value") from error
