"""Bytes that a training step moves per mesh axis on a TPU: the derived plan beside specs by hand and rules by name.

Command: python benchmarks/collectives.py --topology v5e:4x4 --mesh fsdp=4,tensor=4 \\
  --out benchmarks/results/collectives.jsonl

One JSON row per axis. Every contestant is the same step of the same decoder, compiled by libtpu for the same chips,
each in a process of its own; loops are multiplied out. The compiler is stopped when its program is complete: to turn it
into machine code takes it ten times as long, and moves no byte more. Needs the extra `tpu`, and no TPU.

* derived: what `derive` says, its pinned activations included.
* by_hand: Megatron's and ZeRO-3's specs written out for this decoder, and every matmul's result constrained to match.
* redco: rules by name, from their description: keys are the last two names of a path, those that end in `kernel` or
  `embedding` are candidates; in alphabetical order one is split on the last dim that divides, the next on the last but
  one that does, and so on. One model axis; over `fsdp` the parameters are copies.
* closed_form: what Megatron and ZeRO-3 move by their papers' formulas, where the backward pass computes layers again.

References: Shoeybi et al. 2019, "Megatron-LM", section 3, https://arxiv.org/abs/1909.08053; Rajbhandari et al. 2020,
"ZeRO", section 7, https://arxiv.org/abs/1910.02054; Redco: Tan et al. 2023, https://arxiv.org/abs/2310.16355
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.cost.compiled import CollectiveTotal, lower_step, totals
from jaxscale.cost.compiler_dump import dump_options, dumped_text
from jaxscale.cost.rings import ring_bytes
from jaxscale.mesh import MeshSpec, describe_topology, make_mesh
from jaxscale.nn.families import decoder_config
from jaxscale.sharding import jaxprs
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.collectives import collectives
from jaxscale.sharding.constrain import constrain
from jaxscale.sharding.derive import derive
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Program, Scan
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.planned_step import PlannedStep

CONTESTANTS = ("derived", "by_hand", "redco")
MIB = 2**20
# The compiler writes it after the text of its program, and before it makes machine code.
COMPLETE = "*.after_optimizations-memory-usage-report.txt"
BATCH, LENGTH = 32, 256
# By the end of a path, the layers' leading dim left out. A norm's scale is whole.
BY_HAND = {
    "token/table": ("tensor", "fsdp"),
    "query/kernel": ("fsdp", "tensor", None),
    "key/kernel": ("fsdp", "tensor", None),
    "value/kernel": ("fsdp", "tensor", None),
    "out/kernel": ("tensor", None, "fsdp"),
    "gate/kernel": ("fsdp", "tensor"),
    "up/kernel": ("fsdp", "tensor"),
    "down/kernel": ("tensor", "fsdp"),
    "output/kernel": ("fsdp", "tensor"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--mesh", default="fsdp=4,tensor=4")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="some of them, the first is compared")
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    parser.add_argument(
        "--compile", choices=CONTESTANTS, default=None, help="compile one, with its dump in --dump; for us"
    )
    parser.add_argument("--dump", type=Path, default=None)
    flags = parser.parse_args()
    spec = MeshSpec.parse(flags.mesh)
    if flags.compile is not None:
        compile_one(flags.compile, flags.topology, spec, flags.layers, flags.dump)
        return
    found = {name: in_own_process(name, flags) for name in flags.contestants.split(",")}
    for row in rows(found, spec, flags.layers, flags.topology):
        line = json.dumps(row)
        print(line, flush=True)
        if flags.out is not None:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            with flags.out.open("a") as file:
                file.write(f"{line}\n")


def in_own_process(name: str, flags: argparse.Namespace) -> tuple[CollectiveTotal, ...]:
    """Compiles one contestant with this program, until the collectives of its step can be read."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        told = ["--topology", flags.topology, "--mesh", flags.mesh, "--layers", str(flags.layers)]
        command = [sys.executable, __file__, *told, "--compile", name, "--dump", folder]
        with subprocess.Popen(
            command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not any(dump.glob(COMPLETE)):
                time.sleep(1)
            process.kill()
        if not any(dump.glob(COMPLETE)):
            raise SystemExit(f"{name} was not compiled: its process ended with {process.returncode}")
        found = collectives(dumped_text(dump), MeshSpec.parse(flags.mesh).sizes)
        assert all(c.num_runs_known for c in found), f"{name}: a loop of unknown length"
        return totals(found)


def decoder(num_layers: int) -> LanguageModelJob:
    """The decoder that all contestants train, in float32, so that the closed form has one size of number."""
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=num_layers,
            d_model=512,
            num_heads=8,
            num_kv_heads=4,
            d_ff=1536,
            vocab_size=4096,
            max_positions=LENGTH,
            tied_output=False,
        ),
        sequence_length=LENGTH,
        training=TrainingIdentity(
            global_batch_size=BATCH, optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant"))
        ),
        operation=Operation(),
    )


def compile_one(name: str, topology: str, spec: MeshSpec, num_layers: int, dump: Path) -> None:
    """Compiles the step of one contestant for a described topology, with the compiler's dump in a folder."""
    planned = decoder(num_layers).planned_step()
    mesh = make_mesh(spec, describe_topology(topology))
    state = {"params": planned.params, "opt_state": jax.eval_shape(planned.optimizer.init, planned.params)}
    if name == "derived":
        plan = derive(planned.loss, planned.params, planned.batch, spec, optimizer=planned.optimizer)
        loss = apply_plan(plan, planned.loss, mesh, planned.params, planned.batch)
        state_shardings, batch_shardings = plan.shardings(mesh, state), plan.shardings(mesh, planned.batch)
        on = plan.device_mesh(mesh)
    else:
        specs = hand_specs(planned) if name == "by_hand" else redco_specs(planned, spec.tensor)
        pins = hand_pins(planned, num_layers, mesh) if name == "by_hand" else {}
        loss = constrain(planned.loss, pins, planned.params, planned.batch)
        state_shardings = shardings_of_state(state, specs, mesh)
        batch_shardings = jax.tree.map(lambda _: NamedSharding(mesh, P(("data", "fsdp"))), planned.batch)
        on = mesh

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state["params"], batch)
        updates, opt_state = planned.optimizer.update(gradient, state["opt_state"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, value

    lowered = lower_step(
        step, state, planned.batch, state_shardings=state_shardings, batch_shardings=batch_shardings, mesh=on
    )
    lowered.compile(dump_options(dump))


def leaf_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def hand_specs(planned: PlannedStep) -> dict[str, tuple[str | None, ...]]:
    """Megatron and ZeRO-3 for every parameter, by path."""
    specs = {}
    for path, shape in leaf_shapes(planned.params).items():
        inside = next((axes for end, axes in BY_HAND.items() if path.endswith(end)), ())
        specs[path] = (None,) * (len(shape) - len(inside)) + inside
    return specs


def redco_specs(planned: PlannedStep, tensor: int) -> dict[str, tuple[str | None, ...]]:
    """Redco's rules for every parameter, by path."""
    shapes = leaf_shapes(planned.params)
    keys = sorted({"/".join(path.split("/")[-2:]) for path in shapes if re.search(r"(kernel|embedding)$", path)})
    specs = {}
    for path, shape in shapes.items():
        key = "/".join(path.split("/")[-2:])
        valid = [dim for dim, size in enumerate(shape) if size % tensor == 0]
        # The first key takes the last valid dim, the second the one before it, and so on in turns.
        turn = keys.index(key) % 2 if key in keys else len(valid)
        chosen = valid[-1 - turn] if turn < len(valid) else None
        specs[path] = tuple("tensor" if dim == chosen else None for dim in range(len(shape)))
    return specs


def hand_pins(planned: PlannedStep, num_layers: int, mesh: Mesh) -> dict[tuple[Address, int], NamedSharding]:
    """Results of matmuls, lookups and residual sums: examples over fsdp; heads, hidden and vocabulary over tensor."""
    c = decoder(num_layers).transformer
    specs = {
        (BATCH, LENGTH, c.d_model): P(("data", "fsdp")),
        (BATCH, LENGTH, c.num_heads, c.head_dim): P(("data", "fsdp"), None, "tensor"),
        (BATCH, LENGTH, c.num_kv_heads, c.head_dim): P(("data", "fsdp"), None, "tensor"),
        (BATCH, LENGTH, c.d_ff): P(("data", "fsdp"), None, "tensor"),
        (BATCH, LENGTH, c.vocab_size): P(("data", "fsdp"), None, "tensor"),
    }
    program = jaxprs.trace(planned.loss, planned.params, planned.batch)
    return {
        (address, 0): NamedSharding(mesh, specs[equation.output_shapes[0]])
        for address, equation in equations(program)
        if equation.name in ("add", "custom_vjp_call", "dot_general", "gather") and equation.output_shapes[0] in specs
    }


def equations(program: Program, outer: Address = ()) -> Iterator[tuple[Address, Equation]]:
    """All equations with their addresses, those inside custom derivatives left out."""
    for index, equation in enumerate(program.equations):
        address = (*outer, index)
        yield address, equation
        held = None if equation.name.startswith("custom_") else jaxprs.inner(equation)
        if isinstance(held, Scan):
            yield from equations(held.body, address)
        elif isinstance(held, Call):
            yield from equations(held.program, address)
        elif isinstance(held, Branches):
            for number, branch in enumerate(held.branches):
                yield from equations(branch, (*address, number))


def shardings_of_state(state: Any, specs: dict[str, tuple[str | None, ...]], mesh: Mesh) -> Any:
    """Parameters by their specs, moments as their parameter, the rest whole."""

    def sharding(key_path: Any, leaf: Any) -> NamedSharding:
        path = jax.tree_util.keystr(key_path, simple=True, separator="/")
        found = next((axes for name, axes in specs.items() if path.endswith(name) and len(axes) == len(leaf.shape)), ())
        return NamedSharding(mesh, P(*found))

    return jax.tree_util.tree_map_with_path(sharding, state)


def closed_form(num_layers: int, spec: MeshSpec) -> dict[str, float]:
    """Bytes that each device sends by the papers' formulas, by axis.

    Over tensor a layer adds up activations twice forward, twice backward, and once when its attention is computed
    again; so do the embedding forward and the output backward; the loss adds up three numbers a token. Over fsdp every
    matrix is gathered forward and backward, and its gradient reduced and scattered; the table is gathered once.
    """
    c = decoder(num_layers).transformer
    tokens = BATCH * LENGTH // (spec.data * spec.fsdp)
    activation = 4 * tokens * c.d_model
    added = (5 * num_layers + 2) * ring_bytes("all_reduce", activation, spec.tensor)
    added += 3 * ring_bytes("all_reduce", 4 * tokens, spec.tensor)
    heads = c.d_model * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    layer = 4 * (heads + 3 * c.d_model * c.d_ff) // spec.tensor
    table = 4 * c.d_model * c.vocab_size // spec.tensor
    gathered = ring_bytes("all_gather", 2 * num_layers * layer + 2 * table + table, spec.fsdp)
    scattered = ring_bytes("reduce_scatter", num_layers * layer + 2 * table, spec.fsdp)
    norms = ring_bytes("all_reduce", 4 * c.d_model * (2 * num_layers + 1), spec.fsdp)
    return {"tensor": added, "fsdp": gathered + scattered + norms}


def rows(
    found: dict[str, tuple[CollectiveTotal, ...]], spec: MeshSpec, num_layers: int, topology: str
) -> Iterator[dict[str, Any]]:
    """One row for every set of axes and one for all, the first contestant's ratios to the others with them."""
    moved = {name: by_axes(made) for name, made in found.items()}
    moved["closed_form"] = closed_form(num_layers, spec)
    ours = next(iter(moved))
    versions = {package: metadata.version(package) for package in ("jax", "libtpu")}
    for axes in [*sorted({key for sums in moved.values() for key in sums}), "all"]:
        sums = {name: sum(m.values()) if axes == "all" else m.get(axes, 0.0) for name, m in moved.items()}
        row: dict[str, Any] = {"figure": f"collectives.decoder.{axes}", "unit": "MiB sent by a device in a step"}
        row |= {name: round(total / MIB, 3) for name, total in sums.items()}
        row |= {f"ratio_to_{name}": round(sums[ours] / s, 3) for name, s in sums.items() if name != ours and s}
        row |= {"kinds": {name: by_kind(made, axes) for name, made in found.items()}} if axes != "all" else {}
        yield row | {"topology": topology, "mesh": str(spec), "num_layers": num_layers} | versions


def by_axes(found: tuple[CollectiveTotal, ...]) -> dict[str, float]:
    """Bytes sent, by the axes' names."""
    sums: dict[str, float] = defaultdict(float)
    for total in found:
        sums["*".join(total.axes)] += total.bytes_moved
    return sums


def by_kind(found: tuple[CollectiveTotal, ...], axes: str) -> dict[str, str]:
    """How often each kind goes over the axes, and the MiB that it sends."""
    return {t.kind: f"{t.num_runs} x, {t.bytes_moved / MIB:.3f} MiB" for t in found if "*".join(t.axes) == axes}


if __name__ == "__main__":
    main()
