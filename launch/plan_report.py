"""What `jaxscale plan` says of a step: what was predicted beside what the compiler made, and whether it fits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxscale import typed_json
from jaxscale.cost.changes import Change
from jaxscale.cost.communication import Collective, Traffic
from jaxscale.cost.compiled import CompiledStep
from jaxscale.cost.estimate import StepEstimate
from jaxscale.cost.roofline import StepBound, bound_step
from jaxscale.sharding.plan import render_table
from launch.compile_recipe import CompiledRecipe

_GIB = 1024**3
_MAX_TENSORS = 8
Row = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Everything that is known of a step before it runs.

    Attributes:
      estimate: counted from its program.
      compiled: of the compiler; None for chips that it can't be asked about here.
      changes: what to try where it does not fit.
      notes: what the job says of the communication that it does itself.
      gathered_once: the estimate with weights gathered once for all microbatches, where that is another choice.
    """

    estimate: StepEstimate
    compiled: CompiledRecipe | None
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    gathered_once: StepEstimate | None = None

    @property
    def fits(self) -> bool | None:
        """The compiler's verdict where there is one, else the prediction; None where no limit is known."""
        return self.estimate.fits() if self.compiled is None else self.compiled.step.out_of_memory is None

    @property
    def compiled_bound(self) -> StepBound | None:
        """The bound on a step's time with what the compiled program sends, FLOPs and memory traffic as predicted.

        None of a program that was not finished, for it does not fit, or whose loops are of unknown length.
        """
        if self.compiled is None or self.compiled.step.out_of_memory or not self.compiled.step.loops_known:
            return None
        return bound_step(
            flops_by_dtype=self.estimate.work.flops,
            hbm_bytes=self.estimate.work.hbm_bytes,
            traffic=compiled_traffic(self.compiled.step),
            mesh=self.estimate.mesh,
            topology=self.estimate.topology,
            num_microbatches=self.estimate.num_microbatches,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        bound = self.compiled_bound
        return {
            "fits": self.fits,
            "predicted": self.estimate.to_json(),
            "compiled": None if self.compiled is None else typed_json.encode(self.compiled),
            "compiled_bound": None if bound is None else typed_json.encode(bound),
            "changes": typed_json.encode(self.changes),
            "notes": list(self.notes),
            "gathered_once": None if self.gathered_once is None else self.gathered_once.to_json(),
        }

    def render(self) -> str:
        """The report as lines for people."""
        estimate, step = self.estimate, None if self.compiled is None else self.compiled.step
        lines = [f"mesh {estimate.mesh} on {estimate.topology}: {estimate.mesh.num_devices} devices"]
        lines += _gathering(estimate)
        lines += [f"compiled in {step.compile_s:.0f} s by {_versions(step)}" if step else _not_compiled(estimate), ""]
        lines += [
            "memory of a device",
            *_table(_memory(estimate, step)),
            f"  {_verdict(self)}",
            *_hopeless(estimate),
            *_with_copies(estimate, self.gathered_once),
            "",
        ]
        if self.fits is False:
            lines += ["largest tensors when it is fullest", *_table(_tensors(estimate, step)), ""]
            if self.changes:
                lines += ["changes that help, as predicted", *_table(_changes(self.changes)), ""]
        lines += ["FLOPs of a step", *_table(_flops(estimate, step)), ""]
        lines += ["bytes that a device sends in a step", *_table(_traffic(estimate, step))]
        if step is not None and not step.loops_known:
            lines += ["  a loop of unknown length is counted once: the compiled figures are too low"]
        if step is not None and step.out_of_memory is not None and step.collectives:
            lines += ["  the compiler gave up before its program was done: these bytes may be off"]
        lines += [f"  {note}" for note in self.notes]
        lines += ["", "bound on a step's time", *_table(_bounds(estimate, self.compiled_bound)), ""]
        if self.compiled is not None and self.compiled.rematerialized:
            lines += ["the compiler finds no way from one sharding to another but a copy of the whole"]
            lines += [f"  {array}" for array in self.compiled.rematerialized] + [""]
        lines += ["predictions take for granted", *(f"  {assumption}" for assumption in estimate.assumptions)]
        return "\n".join(lines)


def compiled_traffic(step: CompiledStep) -> Traffic:
    """What a compiled step moves, in the form of a predicted one."""
    return Traffic(
        collectives=tuple(
            Collective(
                kind=total.kind,
                axes=total.axes,
                network="dcn" if "slice" in total.axes else "ici",
                num_runs=total.num_runs,
                num_bytes=total.num_bytes // total.num_runs if total.num_runs else 0,
                bytes_moved=total.bytes_moved,
                source="",
            )
            for total in step.collectives
        )
    )


def _gathering(estimate: StepEstimate) -> list[str]:
    """When the weights are gathered, where there is a choice."""
    if estimate.num_microbatches == 1 or estimate.mesh.fsdp == 1:
        return []
    when = "each of which gathers the weights stored over fsdp"
    if estimate.gathered_bytes:
        when = f"for which the weights stored over fsdp are gathered once: {_gib(estimate.gathered_bytes)} of copies"
    return [f"{estimate.num_microbatches} microbatches, {when}"]


def _with_copies(estimate: StepEstimate, other: StepEstimate | None) -> list[str]:
    """What copies of the weights would take and save, where there is memory for them."""
    if other is None or not other.gathered_bytes or other.fits() is False:
        return []
    more = other.memory.peak - estimate.memory.peak
    before, after = (_mib(one.traffic.bytes_moved()) for one in (estimate, other))
    return [
        f"  gathered once per step, weights take {_gib(more)} more and a device sends {after} instead of {before}, as "
        "predicted: --operation.gather-weights step"
    ]


def _memory(estimate: StepEstimate, step: CompiledStep | None) -> list[Row]:
    held, memory = estimate.memory, None if step is None else step.memory
    rows: list[Row] = [("", "predicted", "compiled")]
    rows += [(name, _gib(held.by_class[name]), "") for name in ("parameters", "optimizer", "batch")]
    rows += [("  of these arguments", _gib(held.parameters + held.optimizer + held.batch), _of(memory, "arguments"))]
    rows += [(name, _gib(held.by_class[name]), "") for name in ("gradients", "kept", "temporaries")]
    rows += [
        ("  of these temporaries", _gib(held.gradients + held.kept + held.temporaries), _of(memory, "temporaries"))
    ]
    if memory is not None:
        rows += [("outputs beside the arguments", "", _gib(memory.outputs - memory.aliased))]
        rows += [("peak", _gib(held.peak), _gib(memory.peak))]
    elif step is not None and step.out_of_memory is not None and step.out_of_memory.needed_bytes is not None:
        rows += [("peak", _gib(held.peak), _gib(step.out_of_memory.needed_bytes))]
    else:
        rows += [("peak", _gib(held.peak), "")]
    return rows


def _verdict(report: PlanReport) -> str:
    limit = report.estimate.topology.chip.limit_bytes_per_device
    predicted = {True: "fits", False: "does not fit", None: "no limit is known"}[report.estimate.fits()]
    of = "" if limit is None else f" of {_gib(limit)} that a program may use"
    if report.compiled is None:
        return f"predicted: {predicted}{of}"
    refused = report.compiled.step.out_of_memory
    if refused is None:
        return f"predicted: {predicted}{of}; compiled: {'fits' if limit is not None else 'compiles, no limit is known'}"
    return f"predicted: {predicted}{of}; compiled: does not fit: {refused.message}"


def _hopeless(estimate: StepEstimate) -> list[str]:
    """That the state alone is too large for so many devices, however the rest of the step is made."""
    limit, held = estimate.topology.chip.limit_bytes_per_device, estimate.memory
    state = held.parameters + held.optimizer
    if limit is None or state <= limit:
        return []
    return [
        f"  parameters and optimizer state alone take {_gib(state)} of each device on this mesh, more than the "
        f"{_gib(limit)} there are: no number of microbatches helps"
    ]


def _tensors(estimate: StepEstimate, step: CompiledStep | None) -> list[Row]:
    if step is not None and step.buffers:
        return [(_gib(b.num_bytes), b.shape, b.op, b.source) for b in step.buffers[:_MAX_TENSORS]]
    shown = estimate.memory.tensors[:_MAX_TENSORS]
    return [
        (_gib(t.num_bytes), f"{t.dtype}[{','.join(map(str, t.shape))}]", f"{t.kind}: {t.name}", t.source) for t in shown
    ]


def _changes(changes: Sequence[Change]) -> list[Row]:
    words = {True: "fits", False: "does not fit yet", None: ""}
    return [(f"-{_gib(c.saved_bytes)}", _gib(c.peak_bytes), words[c.fits], c.what) for c in changes]


def _flops(estimate: StepEstimate, step: CompiledStep | None) -> list[Row]:
    rows: list[Row] = [
        ("model", f"{estimate.model.total:.4g}", "all devices, nothing twice"),
        ("hardware", f"{estimate.hardware.total:.4g}", "all devices, with what remat computes again"),
        ("of one device", f"{sum(estimate.work.flops.values()):.4g}", "with what several devices compute alike"),
    ]
    if step is not None and step.xla_flops is not None:
        rows += [("of one device, XLA says", f"{step.xla_flops:.4g}", "the body of a loop is counted once")]
    return rows


def _traffic(estimate: StepEstimate, step: CompiledStep | None) -> list[Row]:
    predicted = estimate.traffic.by_kind_and_axes
    compiled = {} if step is None else compiled_traffic(step).by_kind_and_axes
    runs: dict[Any, int] = {}
    for total in () if step is None else step.collectives:
        runs[total.kind, total.axes] = runs.get((total.kind, total.axes), 0) + total.num_runs
    rows: list[Row] = [("over", "kind", "predicted", "compiled", "runs")]
    for kind, axes in sorted({*predicted, *compiled}, key=lambda key: (key[1], key[0])):
        cells = (_mib(by_key.get((kind, axes))) for by_key in (predicted, compiled))
        rows += [("*".join(axes), kind, *cells, str(runs.get((kind, axes), "")))]
    all_compiled = "" if step is None else _mib(sum(compiled.values()))
    return [*rows, ("all", "", _mib(sum(predicted.values())), all_compiled, "")]


def _bounds(estimate: StepEstimate, compiled: StepBound | None) -> list[Row]:
    bounds = [estimate.bound, *([] if compiled is None else [compiled])]
    rows: list[Row] = [("", "predicted", "with compiled bytes")[: len(bounds) + 1]]
    for what in ("compute", "hbm", "ici", "dcn"):
        rows += [(what, *(_seconds(getattr(bound, f"{what}_s")) for bound in bounds))]
    rows += [("all at the same time", *(_seconds(bound.overlapped_s) for bound in bounds))]
    rows += [("one after the other", *(_seconds(bound.serial_s) for bound in bounds))]
    rows += [("bound by", *(bound.bound_by or "?" for bound in bounds))]
    times = [bound.overlapped_s for bound in bounds]
    if estimate.num_tokens:
        rows += [("tokens/s at most", *(f"{estimate.num_tokens / t:,.0f}" if t else "?" for t in times))]
    used = estimate.utilization
    if used is not None and estimate.bound.overlapped_s:
        first = estimate.bound.overlapped_s
        for what in ("mfu", "mfu_causal", "hfu"):
            rows += [(f"{what} at most", *(f"{getattr(used, what) * first / t:.1%}" if t else "?" for t in times))]
    return rows


def _not_compiled(estimate: StepEstimate) -> str:
    if estimate.topology.chip.kind == "gpu":
        return "not compiled: programs for GPUs can't be compiled without one; all figures are the cost model's"
    return "not compiled, as asked; all figures are the cost model's"


def _versions(step: CompiledStep) -> str:
    return ", ".join(f"{package} {version}" for package, version in step.versions.items())


def _table(rows: list[Row]) -> list[str]:
    return [f"  {line}" for line in render_table(rows)] if rows else ["  nothing"]


def _of(memory: Any, name: str) -> str:
    return "" if memory is None else _gib(getattr(memory, name))


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.3f} GiB"


def _mib(num_bytes: float | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**20:,.2f} MiB"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.2f} ms"
