"""How true `plan` is: predicted memory, traffic and FLOPs beside compiled TPU programs of recipes at full depth.

Command: python -m benchmarks.plan_accuracy [--cases llama2_7b,gpt2] --out benchmarks/results/plan-accuracy.jsonl
Page:    python -m benchmarks.plan_accuracy --page docs/benchmarks/plan-accuracy.md --out benchmarks/results/...
         predicts again, and writes that beside what was compiled when the rows were made.

One JSON row per pair of recipe and topology. Each step is compiled by libtpu, with no TPU, in a process of its own
until its program is complete: memory and collectives are known then. Needs the extra `tpu`.

FLOPs are beside 6 N D + 12 L S H C D (a matmul's two FLOPs, forward once and backward twice): N parameters that
multiply, D tokens, attention over all positions. Verdicts: the memory of a device is set 10 % above and 10 % below what
the compiled program needs; the prediction should say "fits" to the first and "does not fit" to the second.

The rules of what is held were chosen while looking at the first ten pairs (and at palm_8b on v5e:8x8). Those marked
"blind" were compiled for the first time after that, and nothing was changed since.

Reference: Kaplan et al. 2020, section 2.1, https://arxiv.org/abs/2001.08361; Chowdhery et al. 2022, appendix B,
https://arxiv.org/abs/2204.02311
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from jaxscale import typed_json
from jaxscale.cost.chips import Topology
from jaxscale.cost.estimate import StepEstimate, estimate_step, trace_programs
from jaxscale.mesh import MeshSpec
from jaxscale.train.planned_step import derive_step
from launch import recipes
from launch.compile_recipe import CompileRequest, compile_recipe
from launch.plan_report import compiled_traffic

GIB, MIB = 2**30, 2**20
# Of the memory that a compiled program needs: the limits that the prediction is asked about.
LIMITS = ((1.1, True), (0.9, False))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe on a topology; 0 microbatches: as the recipe says; blind: not looked at when the rules were chosen."""

    recipe: str
    topology: str
    mesh: str
    num_slices: int = 1
    grad_accum: int = 0
    blind: bool = False


CASES = (
    Case(recipe="llama2_7b", topology="v5e:16x16", mesh="fsdp=64,tensor=4", grad_accum=8),
    Case(recipe="llama2_70b", topology="v5p:4x4x8", mesh="fsdp=32,tensor=4", grad_accum=4),
    Case(recipe="llama3_405b", topology="v5p:8x8x16", mesh="fsdp=128,tensor=8", grad_accum=16),
    Case(recipe="gpt2", topology="v5e:2x4", mesh="data=8", grad_accum=4),
    Case(recipe="gpt3_175b", topology="v4:8x8x8", mesh="fsdp=64,tensor=8", grad_accum=6),
    Case(recipe="palm_540b", topology="v4:8x16x16", mesh="slice=2,fsdp=256,tensor=8", num_slices=2, grad_accum=2),
    Case(recipe="mixtral_8x7b", topology="v5p:4x4x8", mesh="fsdp=16,expert=8", grad_accum=4),
    Case(recipe="t5_large", topology="v6e:4x4", mesh="fsdp=8,tensor=2", grad_accum=4),
    Case(recipe="bert_base", topology="v5e:4x4", mesh="data=4,fsdp=4"),
    Case(recipe="two_tower_bert_base", topology="v5e:4x4", mesh="data=8,fsdp=2"),
    Case(recipe="llama3_8b", topology="v5p:2x2x4", mesh="fsdp=16", grad_accum=32, blind=True),
    Case(recipe="gpt3_175b", topology="v5p:8x8x8", mesh="fsdp=128,tensor=4", grad_accum=6, blind=True),
    Case(recipe="t5_large", topology="v5e:4x8", mesh="fsdp=32", grad_accum=2, blind=True),
    Case(recipe="palm_8b", topology="v6e:8x8", mesh="fsdp=16,tensor=4", grad_accum=8, blind=True),
    Case(recipe="bert_base", topology="v5e:2x2", mesh="fsdp=4", grad_accum=4, blind=True),
    Case(recipe="two_tower_bert_base", topology="v5e:2x4", mesh="data=8", grad_accum=2, blind=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="names of recipes; all where empty")
    parser.add_argument("--blind", action="store_true", help="only the cases that no rule was chosen by")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/plan-accuracy.jsonl"))
    parser.add_argument("--page", type=Path, default=None, help="compile nothing; write the page of what is in --out")
    flags = parser.parse_args()
    if flags.page is None:
        chosen = flags.cases.split(",") if flags.cases else [case.recipe for case in CASES]
        for case in CASES:
            if case.recipe in chosen and case.blind >= flags.blind:
                row = json.dumps(measure(case))
                print(row, flush=True)
                flags.out.parent.mkdir(parents=True, exist_ok=True)
                with flags.out.open("a") as file:
                    file.write(f"{row}\n")
    # A case that was measured again counts as it was measured last.
    latest: dict[Any, dict[str, Any]] = {
        (row["recipe"], row["topology"], row["mesh"]): row
        for row in map(json.loads, flags.out.read_text().splitlines())
    }
    if flags.page is not None:
        latest = {key: predict_again(row) for key, row in latest.items()}
    for line in summary(list(latest.values())):
        print(line)
    if flags.page is not None:
        flags.page.parent.mkdir(parents=True, exist_ok=True)
        flags.page.write_text(page(list(latest.values())))


def measure(case: Case) -> dict[str, Any]:
    """One row: a case predicted and compiled."""
    job = _job(case)
    estimate = predict(job, case)
    step = compile_recipe(
        CompileRequest(
            recipe=case.recipe,
            job=typed_json.encode(job),
            topology=case.topology,
            num_slices=case.num_slices,
            mesh=case.mesh,
            machine_code=False,
        )
    ).step
    needed = step.needed_bytes
    if needed is None:
        raise SystemExit(f"{case.recipe}: the compiler did not say what it needs: {step.out_of_memory}")
    return {
        **dataclasses.asdict(case),
        "compiled_peak_gib": round(needed / GIB, 3),
        "fits": step.out_of_memory is None,
        "compiled_mib": _by_kind(compiled_traffic(step).by_kind_and_axes),
        "loops_known": step.loops_known,
        "compile_s": round(step.compile_s, 1),
        **step.versions,
        **_beside(job, estimate, needed),
    }


def predict_again(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what is predicted now, beside what was compiled then."""
    case = Case(**{field.name: row.get(field.name, field.default) for field in dataclasses.fields(Case)})
    job = _job(case)
    return {**row, "blind": case.blind, **_beside(job, predict(job, case), row["compiled_peak_gib"] * GIB)}


def _beside(job: Any, estimate: StepEstimate, needed: float) -> dict[str, Any]:
    """What is predicted, beside the bytes that the compiled program needs."""
    memory, closed = estimate.memory, closed_form_flops(job)
    held = memory.parameters + memory.optimizer + memory.batch + memory.kept
    return {
        "predicted_peak_gib": round(memory.peak / GIB, 3),
        "peak_error": round(memory.peak / needed - 1, 4),
        "arguments_and_kept": round(held / memory.peak, 3),
        "predicted_fits": estimate.fits(),
        "verdicts_right": sum((memory.peak <= factor * needed) == fits for factor, fits in LIMITS),
        "model_flops": estimate.model.total,
        "closed_form_flops": closed,
        "flops_error": None if closed is None else round(estimate.model.total / closed - 1, 5),
        "predicted_mib": _by_kind(estimate.traffic.by_kind_and_axes),
    }


def _job(case: Case) -> Any:
    job = recipes.load(case.recipe)
    if case.grad_accum:
        job = dataclasses.replace(job, training=dataclasses.replace(job.training, grad_accum=case.grad_accum))
    return job


def predict(job: Any, case: Case) -> StepEstimate:
    """What `plan` predicts of a case."""
    step = job.planned_step()
    plan = derive_step(step, MeshSpec.parse(case.mesh))
    programs = trace_programs(step.loss, step.params, step.batch, num_microbatches=step.grad_accum)
    topology = Topology.parse(case.topology, num_slices=case.num_slices)
    return estimate_step(programs, plan, topology, num_tokens=step.num_tokens)


def closed_form_flops(job: Any) -> float | None:
    """6 N D and attention's 12 L S H C D, of decoders without experts; None for others."""
    c: Any = getattr(job, "transformer", None)
    if getattr(c, "kind", None) != "decoder" or c.experts is not None:
        return None
    step = job.planned_step()
    attention = c.d_model * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    matrices = 3 if "gate" in step.params["layers"]["mlp"] else 2
    weights = c.num_layers * (attention + matrices * c.d_model * c.d_ff) + c.d_model * c.vocab_size
    attended = 12.0 * c.num_layers * job.sequence_length * c.num_heads * c.head_dim
    return float(step.num_tokens * (6.0 * weights + attended))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Median and worst errors, and the verdicts; of the pairs that the rules were chosen by, then of the others."""
    looked_at = [row for row in rows if not row["blind"]]
    blind = [row for row in rows if row["blind"]]
    return [
        *(_summary(looked_at) if looked_at else []),
        *(f"blind: {line}" for line in (_summary(blind) if blind else [])),
    ]


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    counted = [abs(row["peak_error"]) for row in rows if row["arguments_and_kept"] > 0.5]
    every = [abs(row["peak_error"]) for row in rows]
    flops = [abs(row["flops_error"]) for row in rows if row["flops_error"] is not None]
    lines = []
    if counted:
        lines.append(
            f"peak memory where arguments and kept activations are over half of it ({len(counted)} of {len(rows)} "
            f"pairs): median error {statistics.median(counted):.1%}, worst {max(counted):.1%}"
        )
    lines.append(f"peak memory of all: median error {statistics.median(every):.1%}, worst {max(every):.1%}")
    if flops:
        lines.append(f"FLOPs beside the closed formula ({len(flops)} decoders): worst error {max(flops):.2%}")
    right = sum(row["verdicts_right"] for row in rows)
    lines.append(f"verdicts, the limit 10 % above and below the need: {right} of {2 * len(rows)} right")
    return lines


def page(rows: list[dict[str, Any]]) -> str:
    """The page: memory, FLOPs and bytes by kind and axis."""
    lines = ["# How true `plan` is", "", *str(__doc__).splitlines()[2:], "", "## In short", ""]
    lines += [f"* {line}" for line in summary(rows)]
    lines += ["", "## Peak memory of a device, GiB, and FLOPs of a step", ""]
    lines += ["| recipe | topology | mesh | microbatches | predicted | compiled | error | arguments and kept | FLOPs |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        slices = f" x {row['num_slices']}" if row["num_slices"] > 1 else ""
        flops = "" if row["flops_error"] is None else f"{row['flops_error']:+.2%}"
        name = f"{row['recipe']} (blind)" if row["blind"] else row["recipe"]
        lines.append(
            f"| {name} | {row['topology']}{slices} | {row['mesh']} | {row['grad_accum'] or 1} | "
            f"{row['predicted_peak_gib']:.2f} | {row['compiled_peak_gib']:.2f} | {row['peak_error']:+.1%} | "
            f"{row['arguments_and_kept']:.0%} | {flops} |"
        )
    lines += ["", "## Bytes that a device sends in a step, MiB", ""]
    lines += ["| recipe | over: kind | predicted | compiled |", "| --- | --- | --- | --- |"]
    for row in rows:
        for key in sorted({*row["predicted_mib"], *row["compiled_mib"]}):
            cells = (row[name].get(key) for name in ("predicted_mib", "compiled_mib"))
            shown = " | ".join("" if mib is None else f"{mib:,.1f}" for mib in cells)
            lines.append(f"| {row['recipe']} on {row['topology']} | {key} | {shown} |")
    versions = {f"{name} {row[name]}" for row in rows for name in ("jax", "libtpu")}
    return "\n".join([*lines, "", f"Compiled by {', '.join(sorted(versions))}.", ""])


def _by_kind(moved: dict[Any, float]) -> dict[str, float]:
    return {f"{'*'.join(axes)}: {kind}": round(size / MIB, 1) for (kind, axes), size in moved.items()}


if __name__ == "__main__":
    main()
