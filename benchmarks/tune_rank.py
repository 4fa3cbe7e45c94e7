"""Whether the cost model ranks plans as the compiler does: predicted and compiled bytes and memory of 12 plans.

Command: python -m benchmarks.tune_rank --out benchmarks/results/tune_rank.jsonl

One JSON row for each plan of Llama 2 7B at its full depth on v5e:16x16 (`benchmarks/expert_plans.py`), and one for each
Kendall tau over them (tau-b; 1 is the same order, 0 no relation). The compiler is stopped when its program is complete:
its memory and its collectives are known by then. Needs the extra `tpu`, and no TPU.

Reference: Kendall 1938, "A New Measure of Rank Correlation"; scipy.stats.kendalltau
"""

import argparse
import json
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

from benchmarks.expert_plans import EXPERT_PLANS, OTHER_PLANS, RECIPE, TOPOLOGY, Plan
from jaxscale import typed_json
from jaxscale.cost.chips import Topology
from jaxscale.cost.tune import Tuner
from jaxscale.cost.tune_candidates import step_time
from launch import recipes
from launch.compile_recipe import CompileRequest, compile_recipe
from launch.plan_report import PlanReport
from launch.tuned_job import space_of, with_settings

GIB, MIB = 2**30, 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    job = recipes.load(RECIPE)
    tuner = Tuner(lambda settings: with_settings(job, settings).planned_step(), space_of(job))
    rows = [write(row_of(job, tuner, plan), flags.out) for plan in (*EXPERT_PLANS, *OTHER_PLANS)]
    for row in taus(rows):
        write(row, flags.out)


def row_of(job: Any, tuner: Tuner, plan: Plan) -> dict[str, Any]:
    """Compiles one plan; its figures, predicted and compiled."""
    mesh, settings = plan
    compiled = compile_recipe(
        CompileRequest(
            recipe=RECIPE,
            job=typed_json.encode(with_settings(job, settings)),
            topology=TOPOLOGY,
            num_slices=1,
            mesh=str(mesh),
            machine_code=False,
        )
    )
    estimate = tuner.estimate(mesh, settings, Topology.parse(TOPOLOGY))
    report, step = PlanReport(estimate=estimate, compiled=compiled, changes=()), compiled.step
    bound, needed = report.compiled_bound, step.needed_bytes
    if bound is None or needed is None:
        raise SystemExit(f"{mesh}, {settings}: the compiler did not tell all: {step.out_of_memory}")
    return {
        "figure": "tune_rank.plan",
        "recipe": RECIPE,
        "topology": TOPOLOGY,
        "mesh": str(mesh),
        **typed_json.encode(settings),
        "is_experts": plan in EXPERT_PLANS,
        "memory_gib": [round(estimate.memory.peak / GIB, 3), round(needed / GIB, 3)],
        "sent_mib": [
            round(estimate.traffic.bytes_moved() / MIB, 1),
            round(sum(total.bytes_moved for total in step.collectives) / MIB, 1),
        ],
        "step_s": [round(step_time(one) or 0.0, 4) for one in (estimate.bound, bound)],
        "fits": [estimate.fits(), report.fits],
        "compile_s": round(step.compile_s, 1),
        "versions": step.versions,
    }


def taus(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of predicted against compiled, for each figure that a row has twice."""
    made = []
    for name in ("memory_gib", "sent_mib", "step_s"):
        predicted, compiled = zip(*(row[name] for row in rows), strict=True)
        tau = float(kendalltau(predicted, compiled).statistic)
        made.append({"figure": f"tune_rank.kendall_tau.{name}", "tau": round(tau, 3), "num_plans": len(rows)})
    return made


def write(row: dict[str, Any], out: Path | None) -> dict[str, Any]:
    line = json.dumps(row)
    print(line, flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(f"{line}\n")
    return row


if __name__ == "__main__":
    main()
