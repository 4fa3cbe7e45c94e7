"""Compiles a recipe's training step in a process of its own, for devices that need not be there; JSON in, JSON out.

One process for each compilation: libtpu can be loaded once in a process, the number of emulated devices is fixed at the
start, and a compiler that crashes takes its process with it.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import Mesh

from jaxscale import errors, typed_json
from jaxscale.cost.compiled import CompiledStep, compile_step, lower_step
from jaxscale.errors import JaxscaleError, MachineError, UsageError
from jaxscale.mesh import MeshSpec, describe_topology, make_mesh
from jaxscale.nn.attention_kernels import replacing
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.rematerialization import Rematerialization, rematerializations
from jaxscale.train.planned_step import PlannableJob, derive_step, gathers_once, slice_gradients, weights_of_step
from jaxscale.train.state import new_state
from jaxscale.train.step import make_step
from launch import recipes

_ROOT = Path(__file__).resolve().parents[1]
_TAIL_CHARACTERS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """What to compile, and for what.

    Attributes:
      recipe: a recipe's name, or `path/to/file.py:function`.
      job: the recipe's job with what was changed in it, as `typed_json.encode` writes it; None as the recipe says.
      topology: TPUs as `v5e:4x4`, or emulated devices as `cpu:8`.
      num_slices: of TPUs.
      mesh: the spec of all devices, every size known.
      num_layers: another depth of the model; None for the job's own.
      machine_code: False to stop when a TPU program is complete, in a tenth of the time; see `compile_step`.
    """

    recipe: str
    job: Any
    topology: str
    num_slices: int
    mesh: str
    num_layers: int | None = None
    machine_code: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledRecipe:
    """The answer.

    Attributes:
      step: what the compiler made of it.
      rematerialized: every array that the program copies whole to change its sharding.
    """

    step: CompiledStep
    rematerialized: tuple[Rematerialization, ...]


def compile_recipe(request: CompileRequest) -> CompiledRecipe:
    """Compiles in a process of its own and waits for it.

    Raises:
      JaxscaleError: the same as the process met, such as a mesh that does not suit.
      MachineError: the compiler failed or crashed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="jaxscale-compile-") as folder:
        asked, answered, said = (Path(folder) / name for name in ("request.json", "answer.json", "said.txt"))
        asked.write_bytes(typed_json.canonical(request))
        # A file, which the process can read itself, and which has the last words of a compiler that crashes.
        with said.open("wb") as stderr:
            done = subprocess.run(
                [sys.executable, "-m", "launch.compile_recipe", *map(str, (asked, answered, said))],
                env=_environment(request.topology),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                check=False,
            )
        if not answered.exists():
            raise MachineError(
                f"compiling {request.recipe} for {request.topology} ended with exit code {done.returncode}: "
                f"...{said.read_text(errors='replace')[-_TAIL_CHARACTERS:]}"
            )
        answer = json.loads(answered.read_text())
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    made: CompiledRecipe = typed_json.decode(CompiledRecipe, answer["compiled"], "compiled recipe")
    return made


def compile_here(request: CompileRequest, said: Path) -> CompiledRecipe:
    """Compiles in this process, which must have the emulated devices, or libtpu for described ones.

    Args:
      request: what to compile.
      said: the file that the process writes its standard error to, where the compiler warns.

    Raises:
      UsageError: the recipe has no step to compile, the mesh does not suit it, or no such topology is known.
      MachineError: libtpu is not installed.
    """
    lowered, mesh = lower_here(request)
    step = compile_step(lowered, mesh, MeshSpec.parse(request.mesh).sizes, machine_code=request.machine_code)
    heard = said.read_text(errors="replace").splitlines()
    return CompiledRecipe(step=step, rematerialized=rematerializations(heard, lowered))


def lower_here(request: CompileRequest) -> tuple[jax.stages.Lowered, Mesh]:
    """The step of a request, ready to be compiled, and the mesh that it is for.

    Raises:
      UsageError, MachineError: as `compile_here`.
    """
    job = _job(request)
    spec = MeshSpec.parse(request.mesh)
    on_cpu = request.topology.startswith("cpu:")
    devices = jax.devices() if on_cpu else describe_topology(request.topology, num_slices=request.num_slices)
    mesh = make_mesh(spec, devices)
    planned = job.planned_step().on(spec)
    plan = derive_step(planned, spec)
    # Predictions are of the plain attention, and so what is compiled beside them, unless the job names a kernel.
    attention = "plain" if job.training.attention == "auto" else job.training.attention
    kernels = replacing(plan, mesh, attention)
    loss = apply_plan(plan, planned.loss, mesh, planned.params, planned.microbatch, replacing=kernels)
    gathered = weights_of_step(planned, plan, mesh) if gathers_once(job) else None
    state = jax.eval_shape(lambda params: new_state(params, planned.optimizer), planned.params)
    lowered = lower_step(
        make_step(
            lambda params, batch, key: (loss(params, batch), {}),
            job.training,
            slice_gradients(planned, plan, mesh, attention=attention, gathered=gathered),
            gathered,
        ),
        state,
        planned.batch,
        state_shardings=plan.shardings(mesh, state),
        batch_shardings=plan.shardings(mesh, planned.microbatch),
        mesh=plan.device_mesh(mesh),
    )
    return lowered, mesh


def main() -> None:
    """Reads the request that the first argument names, writes the answer to where the second says, and exits.

    The third argument names the file that standard error goes to.
    """
    asked, answered, said = (Path(argument) for argument in sys.argv[1:])
    try:
        request = typed_json.decode(CompileRequest, json.loads(asked.read_text()), "request")
        answer = {"compiled": typed_json.encode(compile_here(request, said))}
    except JaxscaleError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    answered.write_text(json.dumps(answer))
    sys.stderr.flush()
    # Not sys.exit: a compiler that was asked for no machine code may still be making it.
    os._exit(0)


def _job(request: CompileRequest) -> PlannableJob:
    job = recipes.load(request.recipe)
    if request.job is not None:
        job = typed_json.decode(type(job), request.job, "job")
    if not hasattr(job, "planned_step"):
        raise UsageError(
            f"recipe {request.recipe!r} gives a {type(job).__name__}, which has no training step to compile"
        )
    if not hasattr(job, "training"):
        raise UsageError(
            f"recipe {request.recipe!r} gives a {type(job).__name__} without a field `training`, which says how a step "
            "updates its state; give it a TrainingIdentity, or predict only, with --no-compile"
        )
    if request.num_layers is None:
        return cast(PlannableJob, job)
    if not hasattr(job, "transformer"):
        raise UsageError(f"recipe {request.recipe!r} gives a {type(job).__name__}, of which no other depth can be made")
    return cast(
        PlannableJob,
        dataclasses.replace(job, transformer=dataclasses.replace(job.transformer, num_layers=request.num_layers)),
    )


def _environment(topology: str) -> dict[str, str]:
    """The environment for emulated devices or for a described TPU, with the compiler's warnings on."""
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    warnings = {"TF_CPP_MIN_LOG_LEVEL": "1", "TPU_STDERR_LOG_LEVEL": "1"}
    environment = {**os.environ, **warnings, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    if topology.startswith("cpu:"):
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={topology.removeprefix('cpu:')}"
    return environment


if __name__ == "__main__":
    main()
