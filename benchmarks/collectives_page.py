"""The page of tables that the benchmark of collectives writes of its rows."""

from collections.abc import Sequence
from typing import Any

_HEAD = """\
# Bytes moved: derived plans beside specs by hand

What each device sends in one training step, in MiB, counted from the programs that libtpu {libtpu} compiles (jax
{jax}). Loops are multiplied out, and a collective counts as the bytes of the ring algorithm. Written by

    python -m benchmarks.collectives --out benchmarks/results/collectives.jsonl \\
      --markdown docs/benchmarks/collectives.md

which needs the extra `tpu` and no TPU. `--cases decoder,tied` measures some cases, `--on v5e:4x4@fsdp=2,tensor=8`
another mesh, `--cases ''` none: it only writes the page. The rows by axis and kind of collective are in
`benchmarks/results/collectives.jsonl`.

* *derived*: `derive` and `apply_plan`, pinned activations and stored layouts included. No name is looked at.
* *by hand*: the best of the ways to shard each model in `benchmarks/collective_cases.py`, through the same compiler.
* *Redco*: its rules by names, from their description (`benchmarks/redco_rules.py`). It knows one model axis, so over
  `fsdp` parameters are copies whose gradients are added up: that can move less than splitting them, for more memory.
* *closed form*: Megatron and ZeRO-3 by their papers' formulas (`benchmarks/closed_forms.py`). A ratio is below 1 where
  the compiler gathers once what the formula gathers twice, or moves the rows that are looked up and not the table.

Recipes have their own width and two layers. All steps are float32, of 32 examples of 512 tokens (the small decoders: of
256); GPT's vocabulary is rounded up to 50,304, and Mixtral routes groups of 128 tokens.

Where the plan moves other things than the best specs by hand:

* *bare_experts* and *mixtral_8x7b*: the plan adds up what experts make, cuts the sum by its width and combines it in
  those parts; the compiler makes one reduce-scatter of sum and cut, and gathers what is combined where all of it is
  read. By hand, asking for the parts at once moves less than whole sums in the first, and more in the second: there the
  compiler takes the matmul apart (`docs/decisions/sharding.md`).
* *gpt2*: the plan splits the table of positions over `tensor` as it does that of tokens, and adds up its rows.
"""
_COLUMNS = ("case", "derived", "by hand", "ratio", "Redco", "ratio", "closed form", "ratio")


def page(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> str:
    """The page, one table for each topology and mesh.

    Args:
      rows: of the benchmark, of any cases and meshes.
      order: the cases' names, as the tables shall list them.
    """
    wholes = [row for row in rows if row["figure"].endswith(".all")]
    versions = {name: ", ".join(sorted({row[name] for row in wholes})) for name in ("libtpu", "jax")}
    parts = [_HEAD.format(**versions)]
    for topology, mesh in sorted({(row["topology"], row["mesh"]) for row in wholes}):
        found = [row for row in wholes if (row["topology"], row["mesh"]) == (topology, mesh)]
        found.sort(key=lambda row: order.index(row["case"]))
        parts.append(f"\n## {topology} as {mesh}\n\n{_table(found)}\n{_by_axis(rows, found)}")
    return "".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [_line(_COLUMNS), _line(["---", *["---:"] * (len(_COLUMNS) - 1)])]
    for row in rows:
        cells = [f"{row['case']}: {row['what']}", f"{row['derived']:,.1f}"]
        for other in ("by_hand", "redco", "closed_form"):
            cells += [f"{row[other]:,.1f}", _ratio(row.get(f"ratio_to_{other}"))]
        lines.append(_line(cells))
    return "\n".join(lines)


def _by_axis(rows: Sequence[dict[str, Any]], wholes: Sequence[dict[str, Any]]) -> str:
    """The same by axis, derived and by hand, and which way by hand was the best."""
    lines = ["\nBy axis, derived / by hand / closed form, and the best way by hand:\n", _line(("case", "", "best way"))]
    lines.append(_line(("---", "---", "---")))
    for whole in wholes:
        same = [row for row in rows if all(row[key] == whole[key] for key in ("case", "topology", "mesh"))]
        axes = [_axis(row) for row in same if row is not whole]
        others = [f"{name} {mib:,.1f}" for name, mib in whole["every_way_by_hand"].items()]
        best = whole["best_by_hand"]
        lines.append(_line((whole["case"], "; ".join(axes), f"{best} (of {', '.join(others)})")))
    return "\n".join(lines) + "\n"


def _axis(row: dict[str, Any]) -> str:
    sums = " / ".join(f"{row[name]:,.2f}" for name in ("derived", "by_hand", "closed_form"))
    return f"{row['figure'].rsplit('.', 1)[1]} {sums}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
