"""The page of a training run: what it learned, how fast, where its time went, and what happened to it."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxscale import typed_json
from jaxscale.errors import DataError
from jaxscale.mesh import AXES
from jaxscale.observe import report, sections
from jaxscale.observe.metrics import read_metrics
from jaxscale.observe.units import format_bytes, format_seconds
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.train.events import read_events
from jaxscale.train.run_folder import JOB_FILE, read_job

# What a start of the run begins with, and what it ends with where nobody killed it.
_BEGINNINGS = ("started", "resumed", "forked")
_ENDS = ("stopped", "finished", "diverged")
_GIB = 2**30

Row = Mapping[str, Any]


def write_run_page(run: Path, path: Path) -> None:
    """Writes the page of a run; the run may be going on.

    Args:
      run: its folder.
      path: the file to write.

    Raises:
      DataError: there is no run, it has logged nothing yet, or there are several.
    """
    job = read_job(run)
    runs = sorted(file.parent.name for file in run.glob(f"*/{JOB_FILE}"))
    if runs:
        raise DataError(f"{run}: is a folder of several runs; name one of them: {', '.join(runs)}")
    rows, events = read_metrics(run), read_events(run)
    if not any("loss" in row for row in rows):
        raise DataError(f"{run}: no step is logged yet; try again once the first one is done")
    plan = plan_table(run, "Where each array lives")
    report.write_report(path, run_report(run.name, job.identity, rows, events, plan))


def run_report(
    name: str, identity: Row, rows: Sequence[Row], events: Sequence[Row], plan: sections.Section
) -> report.Report:
    """The page as data.

    Args:
      name: of the run.
      identity: of its job.
      rows: of metrics.jsonl.
      events: of events.jsonl.
      plan: where the arrays live.
    """
    logged = [row for row in rows if "loss" in row]
    last, num_steps = logged[-1], identity["training"]["num_steps"]
    spent = _spent(events)
    speed, unit = _speed(last)
    return report.Report(
        title=f"Run {name}",
        summary=f"{_state(events)} {last['step']:,} of {num_steps:,} steps are in its metrics.",
        facts=(
            report.Fact(value=f"{last['loss']:.4g}", label=f"loss at step {last['step']:,}"),
            report.Fact(value=f"{last[speed]:,.0f}", label=unit),
            *([report.Fact(value=f"{last['mfu']:.1%}", label="MFU")] if "mfu" in last else []),
            *_kept(spent),
        ),
        sections=(
            sections.LossCurve(
                title="What it learned",
                curves=tuple(_curves(rows, ("loss", "dev/loss"))),
                marks=tuple(_marks(events)),
            ),
            sections.LossCurve(title="How fast", curves=(sections.Curve.of(logged, speed, unit),), y_label=unit),
            *_processes(logged),
            _goodput(events, spent),
            *(
                sections.LossCurve(title=title, curves=(sections.Curve.of(logged, metric),), y_label=metric)
                for title, metric in (("The gradient's norm", "grad_norm"), ("The learning rate", "learning_rate"))
                if metric in last
            ),
            *_memory(logged),
            sections.Note(title="What happened", items=tuple(_story(events)) or ("Nothing but steps and saves.",)),
            plan,
        ),
    )


def plan_table(run: Path, title: str) -> sections.PlanTable:
    """The parameters of a run's plan, each with where it lives and why.

    Args:
      run: its folder.
      title: of the section.
    """
    text = (run / "plan.json").read_text(encoding="utf-8")
    plan = typed_json.decode(ShardingPlan, json.loads(text), "plan.json")
    return sections.PlanTable(
        title=title,
        mesh=tuple((axis, getattr(plan.mesh, axis)) for axis in AXES),
        rows=tuple(
            sections.PlanRow(
                leaf=leaf.path,
                shape=leaf.shape,
                axes=leaf.spec,
                bytes_per_device=leaf.bytes_per_device,
                reason="; ".join(leaf.reasons),
            )
            for leaf in plan.leaves
            if leaf.role == "parameter"
        ),
        text=(
            "Derived from how the computation uses each array, not from its name. The optimizer's moments, "
            f"{format_bytes(plan.total_bytes_per_device('optimizer'))} on each device, lie where their "
            "parameters lie."
        ),
    )


def _curves(rows: Sequence[Row], metrics: Sequence[str]) -> list[sections.Curve]:
    return [curve for curve in (sections.Curve.of(rows, metric) for metric in metrics) if curve.steps]


def _speed(row: Row) -> tuple[str, str]:
    """The metric of throughput that a row has, and its unit."""
    if "tokens_per_s_per_device" in row:
        return "tokens_per_s_per_device", "tokens/s per device"
    return "examples_per_s", "examples/s"


def _marks(events: Sequence[Row]) -> list[sections.Mark]:
    """Where the run began again, and where it went back from a spike; of several at one step, the last."""
    labels = {"resumed": "resumed", "forked": "forked", "rolled_back": "rolled back"}
    marks = {event["step"]: labels[event["event"]] for event in events if event["event"] in labels}
    return [sections.Mark(step=step, label=label) for step, label in sorted(marks.items())]


def _spent(events: Sequence[Row]) -> Counter[str]:
    """Seconds by phase, of all starts that told."""
    spent: Counter[str] = Counter()
    for event in events:
        if event["event"] == "goodput":
            spent.update(event["seconds"])
    return spent


def _num_killed(events: Sequence[Row]) -> int:
    """Starts that ended without a word, before another one."""
    kinds = [event["event"] for event in events if event["event"] in (*_BEGINNINGS, *_ENDS)]
    return sum(earlier in _BEGINNINGS and later in _BEGINNINGS for earlier, later in itertools.pairwise(kinds))


def _kept(spent: Counter[str]) -> list[report.Fact]:
    if not spent:
        return []
    share = spent["step"] / sum(spent.values())
    return [report.Fact(value=f"{share:.0%}", label="of the time in steps that were kept")]


def _goodput(events: Sequence[Row], spent: Counter[str]) -> sections.Section:
    title = "Where the time went"
    if not spent:
        text = "A process tells where its time went when it ends; none has yet."
        return sections.Note(title=title, paragraphs=(text,))
    num_killed = _num_killed(events)
    text = "Of the whole wall time of the run's processes; `wasted` is time in steps that a rollback threw away."
    if num_killed:
        text += f" {num_killed} of them were killed and told nothing."
    return sections.Timings(title=title, phases_s=tuple(spent.most_common()), text=text)


def _processes(logged: Sequence[Row]) -> list[sections.LossCurve]:
    """How far several processes were apart, where there were several."""
    slowest = Counter(row["slowest_process"] for row in logged if "slowest_process" in row)
    if not slowest:
        return []
    ((rank, num_rows),) = slowest.most_common(1)
    text = (
        "In a step all processes wait for the last to come. Apart is how much longer the slowest takes for its own "
        f"part, its data above all, than the quickest; process {rank} was the slowest in {num_rows} of "
        f"{slowest.total()} rows."
    )
    curves = (
        sections.Curve.of(logged, "step_time_s", "a step"),
        sections.Curve.of(logged, "step_time_spread_s", "apart"),
    )
    return [sections.LossCurve(title="How far the processes were apart", curves=curves, text=text, y_label="seconds")]


def _memory(logged: Sequence[Row]) -> list[sections.LossCurve]:
    """Peaks in GiB, of what the rows have."""
    names = {"peak_device_memory_bytes": "one device", "peak_host_memory_bytes": "host process"}
    curves = tuple(
        sections.Curve(name=name, steps=curve.steps, values=tuple(value / _GIB for value in curve.values))
        for metric, name in names.items()
        if (curve := sections.Curve.of(logged, metric)).steps
    )
    return [sections.LossCurve(title="Memory at its peak", curves=curves, y_label="GiB")] if curves else []


def _state(events: Sequence[Row]) -> str:
    last = next((event["event"] for event in reversed(events) if event["event"] in (*_BEGINNINGS, *_ENDS)), "started")
    words = {"finished": "It is finished.", "stopped": "It was asked to stop, and saved.", "diverged": "It diverged."}
    return words.get(last, "It is going on, or was killed.")


def _story(events: Sequence[Row]) -> list[str]:
    """What happened besides steps and saves, in words, oldest first."""
    told = []
    for event in events:
        at = f"Step {event.get('step')}: "
        match event["event"]:
            case "resumed":
                how = "bit by bit" if event["bitwise"] else "; ".join(event["environment_changes"])
                told.append(f"{at}went on from the checkpoint ({how}).")
            case "forked":
                told.append(f"{at}began with the state of {event['run']}.")
            case "skipped":
                told.append(f"{at}batch {event['batch']} was not finite and is left out of the parameters.")
            case "spike":
                told.append(f"{at}the loss of batch {event['batch']}, {event['loss']:.4g}, was a spike.")
            case "rolled_back":
                told.append(f"{at}went back to here and left out the batches {', '.join(map(str, event['left_out']))}.")
            case "stopped":
                told.append(f"{at}stopped ({event['reason']}).")
            case "diverged":
                told.append(f"{at}diverged.")
            case "compiled" if event["compile_s"] > 1:
                told.append(f"{at}compiled in {format_seconds(event['compile_s'])}.")
    return told
