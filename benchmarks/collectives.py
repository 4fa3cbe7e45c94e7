"""Bytes that a training step moves per mesh axis on a TPU: the derived plan beside specs by hand and rules by name.

Command: python -m benchmarks.collectives --out benchmarks/results/collectives.jsonl \\
  --markdown docs/benchmarks/collectives.md

One JSON row per case, mesh and axis. Every contestant is the same training step, compiled by libtpu for the same chips,
each in a process of its own; loops are multiplied out, and a collective counts as the bytes that a device sends by the
ring algorithm. Rows of the same case and mesh in --out are replaced. Needs the extra `tpu`, and no TPU.

* derived: what `derive` says, its pinned activations and stored layouts included.
* by hand: the best of the ways in `collective_cases`, with the constraints on activations that an expert would write.
* redco: rules by name; see `redco_rules`.
* closed form: Megatron and ZeRO-3 by their papers' formulas; see `closed_forms`.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.collective_cases import CASES, Case, case
from benchmarks.collective_programs import BY_HAND, DERIVED, REDCO, compiled_text, contestants
from benchmarks.collectives_page import page
from jaxscale.cost.compiled import CollectiveTotal, totals
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.collectives import collectives

MIB = 2**20
MESHES = ("v5e:4x4@fsdp=4,tensor=4", "v5p:4x4x4@fsdp=16,tensor=4")
GOLDEN = ("decoder", "fused_gpt2", "flax_attention", "bare_experts")
# Where 2 key-value heads divide into 8 even less.
EXTRA = {"grouped_heads": ("v5e:4x4@fsdp=2,tensor=8",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="some of them, joined by commas")
    parser.add_argument("--on", action="append", help="topology@mesh, as v5e:4x4@fsdp=4,tensor=4; may be repeated")
    parser.add_argument("--out", type=Path, default=None, help="keep the rows in this file")
    parser.add_argument("--golden", type=Path, default=None, help="write what some cases move to this file, no more")
    parser.add_argument("--markdown", type=Path, default=None, help="write all rows of --out as a page of tables")
    flags = parser.parse_args()
    if flags.golden is not None:
        keep_golden(flags.golden)
        return
    for name in filter(None, flags.cases.split(",")):
        for on in flags.on or (*MESHES, *EXTRA.get(name, ())):
            topology, _, mesh = on.partition("@")
            made = list(measured(case(name), topology, MeshSpec.parse(mesh)))
            print(*map(json.dumps, made), sep="\n", flush=True)
            if flags.out is not None:
                keep(flags.out, made)
    if flags.markdown is not None:
        flags.markdown.parent.mkdir(parents=True, exist_ok=True)
        flags.markdown.write_text(page([json.loads(line) for line in flags.out.read_text().splitlines()], CASES))


def measured(of: Case, topology: str, spec: MeshSpec) -> Iterator[dict[str, Any]]:
    """One row for every set of axes and one for all."""
    found = {name: moved(of.name, name, topology, spec) for name in contestants(of, spec)}
    best = min((name for name in found if name.startswith(BY_HAND)), key=lambda name: _total(found[name]))
    sums = {
        "derived": by_axes(found[DERIVED]),
        "by_hand": by_axes(found[best]),
        "redco": by_axes(found[REDCO]),
        "closed_form": of.closed_form(spec),
    }
    common = {"case": of.name, "what": of.what, "topology": topology, "mesh": str(spec)}
    common |= {"best_by_hand": best.removeprefix(BY_HAND)}
    common |= {package: metadata.version(package) for package in ("jax", "libtpu")}
    for axes in sorted({key for by_axis in sums.values() for key in by_axis}):
        row = {name: by_axis.get(axes, 0.0) for name, by_axis in sums.items()}
        kinds = {"derived": by_kind(found[DERIVED], axes), "by_hand": by_kind(found[best], axes)}
        yield {**_row(of.name, axes, row), "kinds": kinds, **common}
    every_way = {
        name.removeprefix(BY_HAND): round(_total(made) / MIB, 3)
        for name, made in found.items()
        if name.startswith(BY_HAND)
    }
    whole = {name: sum(by_axis.values()) for name, by_axis in sums.items()}
    yield {**_row(of.name, "all", whole), "every_way_by_hand": every_way, **common}


def moved(name: str, contestant: str, topology: str, spec: MeshSpec) -> tuple[CollectiveTotal, ...]:
    """The collectives of one contestant's program."""
    found = collectives(compiled_text(name, contestant, topology, spec), spec.sizes)
    unknown = [c.source for c in found if not c.num_runs_known]
    if unknown:
        raise SystemExit(f"{name}, {contestant}: collectives in loops of unknown length: {unknown}")
    return totals(found)


def by_axes(found: tuple[CollectiveTotal, ...]) -> dict[str, float]:
    """Bytes sent, by the axes' names."""
    sums: dict[str, float] = defaultdict(float)
    for total in found:
        sums["*".join(total.axes)] += total.bytes_moved
    return sums


def by_kind(found: tuple[CollectiveTotal, ...], axes: str) -> dict[str, str]:
    """How often each kind goes over the axes, and the MiB that it sends."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for total in found:
        if "*".join(total.axes) == axes:
            sums[total.kind][0] += total.num_runs
            sums[total.kind][1] += total.bytes_moved / MIB
    return {kind: f"{num_runs:g} x, {mib:.3f} MiB" for kind, (num_runs, mib) in sums.items()}


def keep(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows to a file of rows, in the place of those of the same case, topology and mesh."""

    def of(row: dict[str, Any]) -> tuple[str, ...]:
        return row["case"], row["topology"], row["mesh"]

    before = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    kept = [row for row in before if of(row) not in {of(row) for row in rows}]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{json.dumps(row)}\n" for row in [*kept, *rows]))


def budget(found: tuple[CollectiveTotal, ...]) -> dict[str, dict[str, list[int]]]:
    """How often each kind goes over the axes, and the bytes of all its runs, by axes and kind."""
    made: dict[str, dict[str, list[int]]] = {}
    for total in found:
        pair = made.setdefault("*".join(total.axes), {}).setdefault(total.kind, [0, 0])
        pair[0] += total.num_runs
        pair[1] += total.num_bytes
    return made


def keep_golden(path: Path) -> None:
    """Writes what the derived plans of some cases move on v5e:4x4, under the version of libtpu."""
    golden = json.loads(path.read_text()) if path.exists() else {}
    topology, _, mesh = MESHES[0].partition("@")
    spec = MeshSpec.parse(mesh)
    golden[metadata.version("libtpu")] = {name: budget(moved(name, DERIVED, topology, spec)) for name in GOLDEN}
    path.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")


def _row(name: str, axes: str, moved: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"figure": f"collectives.{name}.{axes}", "unit": "MiB sent by a device in a step"}
    row |= {contestant: round(num / MIB, 3) for contestant, num in moved.items()}
    ours = moved["derived"]
    return row | {f"ratio_to_{other}": round(ours / n, 3) for other, n in moved.items() if other != "derived" and n}


def _total(found: tuple[CollectiveTotal, ...]) -> float:
    return sum(total.bytes_moved for total in found)


if __name__ == "__main__":
    main()
