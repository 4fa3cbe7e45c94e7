"""The training step of one case, sharded by one contestant, compiled for described or emulated devices.

Run as a program it compiles one of them for a TPU topology with the compiler's dump in a folder; see `compiled_text`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from benchmarks.collective_cases import Case, case
from benchmarks.hand_written import HandWritten, leaf_shapes, state_shardings
from benchmarks.redco_rules import redco
from jaxscale.cost.compiled import lower_step
from jaxscale.cost.compiler_dump import dump_options, dumped_text
from jaxscale.mesh import MeshSpec, describe_topology, make_mesh
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.constrain import constrain
from jaxscale.sharding.derive import derive
from jaxscale.sharding.specs import BATCH_AXES
from jaxscale.sharding.trace import LossFunction

DERIVED, REDCO, BY_HAND = "derived", "redco", "by hand: "
_ROOT = Path(__file__).resolve().parents[1]
# The compiler writes the text of its program just after the report, and only then makes machine code.
_WRITTEN = ("*.after_optimizations-memory-usage-report.txt", "*.after_optimizations.txt")
_WRITING_S = 0.5
_LONGEST_S = 300.0


def contestants(of: Case, spec: MeshSpec) -> list[str]:
    """Who is compared: the derived plan, each way by hand, and Redco's rules."""
    return [DERIVED, *(f"{BY_HAND}{hand.name}" for hand in of.by_hand(spec)), REDCO]


def lowered(of: Case, contestant: str, spec: MeshSpec, devices: Sequence[Any] | None = None) -> jax.stages.Lowered:
    """The step of a case as a contestant shards it, ready to be compiled."""
    mesh = make_mesh(spec, devices)
    if contestant == DERIVED:
        return _lowered_as_derived(of, spec, mesh)
    if contestant == REDCO:
        return _lowered_by_hand(of, redco(leaf_shapes(of.params), spec.tensor), mesh)
    hand = next(hand for hand in of.by_hand(spec) if f"{BY_HAND}{hand.name}" == contestant)
    return _lowered_by_hand(of, hand, mesh)


def _lowered_as_derived(of: Case, spec: MeshSpec, mesh: Mesh) -> jax.stages.Lowered:
    plan = derive(of.loss, of.params, of.batch, spec, optimizer=of.optimizer, limits=of.limits)
    state = _state(of, of.params)
    return lower_step(
        _step(of, apply_plan(plan, of.loss, mesh, of.params, of.batch)),
        state,
        of.batch,
        state_shardings=plan.shardings(mesh, state),
        batch_shardings=plan.shardings(mesh, of.batch),
        mesh=plan.device_mesh(mesh),
    )


def _lowered_by_hand(of: Case, hand: HandWritten, mesh: Mesh) -> jax.stages.Lowered:
    params = of.params if hand.params is None else hand.params
    state = _state(of, params)
    examples = "*".join(axis for axis in BATCH_AXES if mesh.shape[axis] > 1) or "-"
    return lower_step(
        _step(of, constrain(of.loss, hand.pins(of.loss, params, of.batch, mesh), params, of.batch)),
        state,
        of.batch,
        state_shardings=state_shardings(state, hand, mesh),
        batch_shardings=jax.tree.map(
            lambda leaf: hand.sharding(mesh, ", ".join([examples, *["-"] * (leaf.ndim - 1)]), leaf.ndim), of.batch
        ),
        mesh=hand.mesh(mesh),
    )


def _state(of: Case, params: Any) -> dict[str, Any]:
    return {"params": params, "opt_state": jax.eval_shape(of.optimizer.init, params)}


def _step(of: Case, loss: LossFunction) -> Any:
    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state["params"], batch)
        updates, opt_state = of.optimizer.update(gradient, state["opt_state"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, value

    return step


def compiled_text(name: str, contestant: str, topology: str, spec: MeshSpec) -> str:
    """The text of the program that libtpu makes, from a process of its own.

    That process is stopped when its program is complete: to turn it into machine code takes it ten times as long, and
    moves no byte more.

    Raises:
      RuntimeError: it ended, or took five minutes, before it had a program; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", errors="replace") as said:
        dump = Path(folder)
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.collective_programs", name, contestant, topology, str(spec), folder],
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=said,
        ) as process:
            until = time.monotonic() + _LONGEST_S
            while process.poll() is None and not _is_complete(dump) and time.monotonic() < until:
                time.sleep(0.2)
            time.sleep(_WRITING_S)
            process.kill()
        if not _is_complete(dump):
            said.seek(0)
            raise RuntimeError(f"{name}, {contestant}, on {topology} was not compiled: ...{said.read()[-1500:]}")
        return dumped_text(dump)


def _is_complete(dump: Path) -> bool:
    return all(any(dump.glob(pattern)) for pattern in _WRITTEN)


def main() -> None:
    """Compiles what the arguments name: case, contestant, topology, mesh, dump folder."""
    name, contestant, topology, mesh, dump = sys.argv[1:]
    program = lowered(case(name), contestant, MeshSpec.parse(mesh), describe_topology(topology))
    program.compile(dump_options(Path(dump)))


if __name__ == "__main__":
    main()
