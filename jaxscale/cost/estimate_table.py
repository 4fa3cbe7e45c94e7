"""A step's estimate as a table for people."""

from collections.abc import Sequence

from jaxscale.cost.changes import Change
from jaxscale.cost.estimate import StepEstimate
from jaxscale.sharding.plan import render_table

_GIB = 1024**3
_MAX_TENSORS = 8


def render(estimate: StepEstimate, changes: Sequence[Change] = ()) -> str:
    """The estimate as lines of text.

    Args:
      estimate: of a step.
      changes: what to try where it does not fit.
    """
    lines = [f"mesh {estimate.mesh} on {estimate.topology}: {estimate.mesh.num_devices} devices", ""]
    lines += ["memory of a device at its peak", *_indented(_memory(estimate)), ""]
    if estimate.fits() is False:
        lines += ["largest tensors", *_indented(_tensors(estimate)), ""]
        if changes:
            lines += ["changes that help", *_indented(_changes(changes)), ""]
    lines += ["FLOPs of a step", *_indented(_flops(estimate)), ""]
    lines += ["bytes that a device sends in a step", *_indented(_traffic(estimate)), ""]
    lines += ["bound on a step's time", *_indented(_bound(estimate)), ""]
    lines += ["taken for granted", *(f"  {assumption}" for assumption in estimate.assumptions)]
    return "\n".join(lines)


def _indented(rows: list[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in render_table(rows)] if rows else ["  nothing"]


def _memory(estimate: StepEstimate) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(name, _gib(size)) for name, size in estimate.memory.by_class.items()]
    limit, fits = estimate.topology.chip.limit_bytes_per_device, estimate.fits()
    verdict = {True: "fits", False: "does not fit", None: "no limit is known"}[fits]
    of = "" if limit is None else f" of {_gib(limit)}"
    return [*rows, ("peak", f"{_gib(estimate.memory.peak)}{of}: {verdict}")]


def _tensors(estimate: StepEstimate) -> list[tuple[str, ...]]:
    shown = estimate.memory.tensors[:_MAX_TENSORS]
    return [(_gib(t.num_bytes), t.kind, f"{t.dtype}[{','.join(map(str, t.shape))}]", t.name, t.source) for t in shown]


def _changes(changes: Sequence[Change]) -> list[tuple[str, ...]]:
    words = {True: "fits", False: "does not fit yet", None: ""}
    return [(f"-{_gib(c.saved_bytes)}", _gib(c.peak_bytes), words[c.fits], c.what) for c in changes]


def _flops(estimate: StepEstimate) -> list[tuple[str, ...]]:
    dtypes = ", ".join(f"{dtype} {flops:.4g}" for dtype, flops in estimate.hardware.contractions.items())
    return [
        ("model", f"{estimate.model.total:.4g}", f"forward {estimate.model.forward:.4g}"),
        ("hardware", f"{estimate.hardware.total:.4g}", dtypes),
        ("done by devices", f"{estimate.repeated_work:.3f} times the hardware's", ""),
    ]


def _traffic(estimate: StepEstimate) -> list[tuple[str, ...]]:
    found = sorted(estimate.traffic.by_kind_and_axes.items(), key=lambda item: -item[1])
    return [
        (kind, "*".join(axes), "DCN" if "slice" in axes else "ICI", _gib(num_bytes))
        for (kind, axes), num_bytes in found
    ]


def _bound(estimate: StepEstimate) -> list[tuple[str, ...]]:
    bound = estimate.bound
    terms = {"compute": bound.compute_s, "HBM": bound.hbm_s, "ICI": bound.ici_s, "DCN": bound.dcn_s}
    rows: list[tuple[str, ...]] = [(name, _seconds(value)) for name, value in terms.items()]
    rows.append(("all at once", f"{_seconds(bound.overlapped_s)}, bound by {bound.bound_by or 'what is not known'}"))
    rows.append(("nothing sent meanwhile", _seconds(bound.serial_s)))
    if bound.pipeline_bubble:
        rows.append(("pipeline bubble", f"{bound.pipeline_bubble:.1%}"))
    if estimate.tokens_per_s is not None:
        rows.append(("tokens/s", f"at most {estimate.tokens_per_s:,.0f}"))
    used = estimate.utilization
    if used is not None:
        rows.append(("MFU", f"at most {used.mfu:.1%} (attention halved {used.mfu_causal:.1%}, HFU {used.hfu:.1%})"))
        rows.append(("peak", f"{used.peak_flops_per_s / 1e12:.1f} TFLOP/s a device"))
    return rows


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:,.3f} GiB"


def _seconds(value: float | None) -> str:
    return "no figure" if value is None else f"{value * 1e3:,.2f} ms"
