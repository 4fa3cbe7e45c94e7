"""`jaxscale plan`: what a recipe's training step costs on devices that nobody here owns, predicted and compiled."""

import dataclasses
from typing import Annotated, Any, Self

import tyro

from jaxscale import typed_json
from jaxscale.cost.changes import propose_changes
from jaxscale.cost.chips import Topology
from jaxscale.cost.estimate import estimate_step, trace_programs
from jaxscale.errors import DoesNotFitError, UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.rematerialization import refuse
from jaxscale.train.planned_step import derive_step, gathers_once
from launch.compile_recipe import CompiledRecipe, CompileRequest, compile_recipe
from launch.plan_report import PlanReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Compiles a recipe's real training step for a topology, and prints what it needs beside what was predicted.

    No data is read and no such device is needed: TPU programs are made by libtpu (pip install 'jaxscale[tpu]'), those
    of cpu:N on emulated devices; GPUs are predicted only. Every field of the recipe's job is a flag. Exit code 7 where
    it does not fit.

    Example: jaxscale plan two_tower_tiny --topology v5e:4x4 --mesh fsdp=8,tensor=2

    Attributes:
      topology: v5e:16x16, v5p:4x4x8, h100:8, cpu:8: a chip and its number in each direction of its network.
      slices: how many of these, joined by the data-centre network.
      mesh: as fsdp=64,tensor=4; empty for what the recipe says, else all devices on fsdp.
      compile: whether to compile; --no-compile predicts only.
      job: the recipe's job.
    """

    topology: str = ""
    slices: int = 1
    mesh: str = ""
    compile: bool = True
    recipe: tyro.conf.Suppress[str] = ""
    # tyro sees the class of the recipe's job through the default that `for_recipe` gives.
    job: Annotated[Any, tyro.conf.arg(name="")] = None

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for the process that compiles it.
          job: what it returns.

        Raises:
          UsageError: the recipe is of something that has no training step to plan.
        """
        if not hasattr(job, "planned_step"):
            raise UsageError(f"recipe {name!r} gives a {type(job).__name__}, which has no training step to plan")
        return cls(recipe=name, job=job)

    def run(self) -> dict[str, Any]:
        """Prints the report and returns it.

        Raises:
          UsageError: no topology is named, the mesh does not suit the step, or the compiled program copies an array
            whole to every device, above the plan's limit for what is copied.
          DoesNotFitError: the compiler, or without one the prediction, says that the memory is too small.
        """
        if not self.topology:
            raise UsageError("plan needs --topology, as in v5e:16x16, h100:8 or cpu:8")
        topology = Topology.parse(self.topology, num_slices=self.slices)
        spec = self._spec(topology)
        step = self.job.planned_step().on(spec)
        plan = derive_step(step, spec)
        compiled = self._compiled(topology, spec)
        programs = trace_programs(
            step.loss,
            step.params,
            step.batch,
            num_microbatches=step.grad_accum,
            gather_once=gathers_once(self.job),
        )
        estimate = estimate_step(programs, plan, topology, num_tokens=step.num_tokens)
        report = PlanReport(estimate=estimate, compiled=compiled, changes=(), notes=step.notes)
        if report.fits is False:
            changes = propose_changes(
                step.loss,
                step.params,
                step.batch,
                step.optimizer,
                plan,
                estimate,
                gather_once=programs.gather_once,
            )
            report = dataclasses.replace(report, changes=changes)
        elif estimate.num_microbatches > 1 and not programs.gather_once:
            other = dataclasses.replace(programs, gather_once=True)
            report = dataclasses.replace(
                report, gathered_once=estimate_step(other, plan, topology, num_tokens=step.num_tokens)
            )
        print(report.render())
        found = {**report.to_json(), "sharding": plan.to_json()}
        if report.fits is False:
            raise DoesNotFitError(
                f"{self.recipe} does not fit on {topology} with mesh {spec}; the table shows the largest tensors, and "
                "what would help",
                report=found,
            )
        if compiled is not None:
            refuse(compiled.rematerialized, plan.limits.replicated_leaf_bytes, report=found)
        return found

    def _spec(self, topology: Topology) -> MeshSpec:
        text = self.mesh or self.job.operation.mesh
        spec = MeshSpec.parse(text) if text else MeshSpec(slice=topology.num_slices, fsdp=-1)
        return spec.resolve(topology.num_devices)

    def _compiled(self, topology: Topology, spec: MeshSpec) -> CompiledRecipe | None:
        if not self.compile or topology.chip.kind == "gpu":
            return None
        return compile_recipe(
            CompileRequest(
                recipe=self.recipe,
                job=typed_json.encode(self.job),
                topology=self.topology,
                num_slices=self.slices,
                mesh=str(spec),
            )
        )
