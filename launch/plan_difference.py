"""What changed between two plans, from the files that `plan --json` and `explain --json` wrote."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxscale import typed_json
from jaxscale.cost.communication import Traffic
from jaxscale.cost.estimate import StepEstimate
from jaxscale.errors import DataError
from jaxscale.sharding.plan import ShardingPlan, render_table
from jaxscale.sharding.specs import spec_text
from launch.compile_recipe import CompiledRecipe
from launch.plan_report import PlanReport, compiled_traffic

Section = Literal["step", "leaves", "memory", "FLOPs", "bytes sent", "step time"]
Value = str | float | None
# What a number of a section is divided by, and the unit that it then has.
_UNITS: dict[Section, tuple[float, str]] = {
    "memory": (1024**3, "GiB"),
    "FLOPs": (1e12, "TFLOP"),
    "bytes sent": (1024**2, "MiB"),
    "step time": (1e-3, "ms"),
}
# Relative; below it two numbers print alike.
_SAME = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A file that a verb wrote.

    Attributes:
      path: where it is.
      sharding: the specs; None of a plan that an older version wrote.
      report: memory, FLOPs, bytes and times; None of what `explain` wrote.
    """

    path: Path
    sharding: ShardingPlan | None
    report: PlanReport | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not the same.

    Attributes:
      section: what it is about.
      name: of it.
      before: in the first plan, in bytes, FLOPs or seconds where it is a number; None where it has none.
      after: in the second.
    """

    section: Section
    name: str
    before: Value
    after: Value


def read_plan(path: Path) -> PlanFile:
    """Reads what `plan --json` or `explain --json` wrote.

    Raises:
      DataError: the file can't be read, or is no such plan.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}); expected what `jaxscale plan --json` wrote") from error
    try:
        if isinstance(found, dict) and "predicted" in found:
            return PlanFile(path=path, sharding=_sharding(found.get("sharding")), report=_report(found))
        if isinstance(found, dict) and "leaves" in found:
            return PlanFile(path=path, sharding=_sharding(found), report=None)
    except DataError as error:
        raise DataError(f"{path}: {error}; write it again with this version's `jaxscale plan --json`") from error
    has = f"the fields {', '.join(sorted(found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
    raise DataError(f"{path}: is no plan: expected what `jaxscale plan --json` or `explain --json` wrote, got {has}")


def differences(first: PlanFile, second: PlanFile) -> tuple[Difference, ...]:
    """All that both plans tell and that is not the same, in the order of the sections.

    Args:
      first: what was.
      second: what is.
    """
    made: list[Difference] = []
    for section in ("step", "leaves", "memory", "FLOPs", "bytes sent", "step time"):
        before, after = (_facts(plan, section) for plan in (first, second))
        if before is not None and after is not None:
            made += _compared(section, before, after)
    return tuple(made)


def render(first: PlanFile, second: PlanFile, found: tuple[Difference, ...]) -> str:
    """The differences as lines for people.

    Args:
      first: what was.
      second: what is.
      found: between them.
    """
    lines = [f"from {first.path} to {second.path}"]
    lines += [f"{plan.path} has no figures: `explain` wrote it" for plan in (first, second) if plan.report is None]
    lines += [f"{plan.path} has no specs of leaves" for plan in (first, second) if plan.sharding is None]
    if not found:
        return "\n".join([*lines, "nothing else differs" if len(lines) > 1 else "nothing differs"])
    for section in dict.fromkeys(one.section for one in found):
        rows = [_row(one) for one in found if one.section == section]
        lines += ["", section, *(f"  {line}" for line in render_table(rows))]
    return "\n".join(lines)


def _sharding(value: Any) -> ShardingPlan | None:
    return None if value is None else ShardingPlan.from_json(value)


def _report(found: dict[str, Any]) -> PlanReport:
    compiled = found.get("compiled")
    return PlanReport(
        estimate=StepEstimate.from_json(found["predicted"]),
        compiled=None if compiled is None else typed_json.decode(CompiledRecipe, compiled, "compiled"),
        changes=(),
    )


def _facts(plan: PlanFile, section: Section) -> dict[str, Value] | None:
    """What a plan tells in a section, by name; None where it tells nothing."""
    if section == "leaves":
        return None if plan.sharding is None else dict(_leaves(plan.sharding))
    if plan.report is None:
        return {"mesh": str(plan.sharding.mesh)} if section == "step" and plan.sharding is not None else None
    read = {
        "step": _step,
        "memory": _memory,
        "FLOPs": _flops,
        "bytes sent": _sent,
        "step time": _times,
    }
    return dict(read[section](plan.report))


def _compared(section: Section, before: Mapping[str, Value], after: Mapping[str, Value]) -> Iterator[Difference]:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if not _are_same(old, new):
            yield Difference(section=section, name=name, before=old, after=new)


def _are_same(old: Value, new: Value) -> bool:
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return abs(old - new) <= _SAME * max(abs(old), abs(new))
    return old == new


def _leaves(plan: ShardingPlan) -> Iterator[tuple[str, Value]]:
    for leaf in plan.leaves:
        shape = " ".join(map(str, leaf.shape)) or "scalar"
        stored = "" if leaf.layout is None else f", in {leaf.layout.num_shards} pieces of each part"
        yield f"{leaf.role} {leaf.path}", f"{shape} {leaf.dtype} over {spec_text(leaf.spec)}{stored}"


def _step(report: PlanReport) -> Iterator[tuple[str, Value]]:
    estimate = report.estimate
    words = {True: "fits", False: "does not fit", None: "no limit is known"}
    yield "mesh", str(estimate.mesh)
    yield "topology", str(estimate.topology)
    yield "microbatches", str(estimate.num_microbatches)
    yield "tokens", f"{estimate.num_tokens:,}"
    yield "predicted", words[estimate.fits()]
    if report.compiled is not None:
        yield "compiled", words[report.fits]


def _memory(report: PlanReport) -> Iterator[tuple[str, Value]]:
    memory = report.estimate.memory
    yield from memory.by_class.items()
    yield "peak", memory.peak
    compiled = None if report.compiled is None else report.compiled.step.memory
    if compiled is not None:
        yield "compiled arguments", compiled.arguments
        yield "compiled temporaries", compiled.temporaries
        yield "compiled peak", compiled.peak


def _flops(report: PlanReport) -> Iterator[tuple[str, Value]]:
    estimate = report.estimate
    yield "model", estimate.model.total
    yield "hardware", estimate.hardware.total
    yield "of one device", sum(estimate.work.flops.values())


def _sent(report: PlanReport) -> Iterator[tuple[str, Value]]:
    yield from _traffic("", report.estimate.traffic)
    if report.compiled is not None:
        yield from _traffic("compiled ", compiled_traffic(report.compiled.step))


def _traffic(prefix: str, traffic: Traffic) -> Iterator[tuple[str, Value]]:
    totals = traffic.by_kind_and_axes
    for kind, axes in sorted(totals, key=lambda key: (key[1], key[0])):
        yield f"{prefix}{kind} over {'*'.join(axes)}", totals[kind, axes]
    yield f"{prefix}all", traffic.bytes_moved()


def _times(report: PlanReport) -> Iterator[tuple[str, Value]]:
    bounds = {"": report.estimate.bound, "compiled ": report.compiled_bound}
    for prefix, bound in bounds.items():
        if bound is not None:
            for name in ("compute", "hbm", "ici", "dcn"):
                yield f"{prefix}{name}", getattr(bound, f"{name}_s")
            yield f"{prefix}all at the same time", bound.overlapped_s
            yield f"{prefix}one after the other", bound.serial_s
            yield f"{prefix}bound by", bound.bound_by or "?"


def _row(found: Difference) -> tuple[str, ...]:
    old, new = (_text(found.section, value) for value in (found.before, found.after))
    ratio = ""
    if isinstance(found.before, (int, float)) and isinstance(found.after, (int, float)) and found.before:
        ratio = f"{found.after / found.before - 1:+.1%}"
    return found.name, old, "->", new, ratio


def _text(section: Section, value: Value) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    divisor, unit = _UNITS[section]
    return f"{value / divisor:,.3f} {unit}"
