"""`jaxscale explain`: where every array of a recipe goes on a mesh, and why."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Self

import jax
import tyro

from jaxscale.cost.chips import Chip, chip_of_topology
from jaxscale.cost.estimate import trace_programs
from jaxscale.cost.memory import MemoryUse, count_memory
from jaxscale.errors import MachineError, UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.observe.report import write_report
from jaxscale.sharding import jaxprs, rewrite
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.train.planned_step import PlannedStep, derive_step, gathers_once
from launch.explain_page import explain_page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Derives a recipe's sharding plan and prints it as a table; nothing is trained, and no device is needed.

    No data is read. Every field of the recipe's job is a flag.

    Example: jaxscale explain two_tower_tiny --mesh data=2,fsdp=2,tensor=2 --html plan.html

    Attributes:
      mesh: as fsdp=4,tensor=2, of any number of devices; empty for what the recipe says, else this machine's on data.
      every_leaf: also print the optimizer's leaves that are split as the parameter they are made from.
      html: a file to draw the plan in, as one page that needs no network.
      chip: whose memory the page holds the step's against: v5e, v5p, v6e, h100.
      job: the recipe's job.
    """

    mesh: str = ""
    every_leaf: bool = False
    html: Path | None = None
    chip: str = "v5e"
    recipe: tyro.conf.Suppress[str] = ""
    # tyro sees the class of the recipe's job through the default that `for_recipe` gives. An optional part that the
    # recipe has is flags like any other; one that it does without stays away.
    job: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = None

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for messages and the page's title.
          job: what it returns.

        Raises:
          UsageError: the recipe is of something that has no training step to explain.
        """
        if not hasattr(job, "planned_step"):
            raise UsageError(f"recipe {name!r} gives a {type(job).__name__}, which has no training step to explain")
        return cls(recipe=name, job=job)

    def run(self) -> dict[str, Any]:
        """Prints the plan, draws it if asked, and returns it.

        Raises:
          UsageError: the mesh does not suit the recipe, or the chip is unknown.
          MachineError: the page can't be written.
        """
        spec, chip = _spec(self.mesh or self.job.operation.mesh), chip_of_topology(self.chip)
        step = self.job.planned_step().on(spec)
        plan = derive_step(step, spec)
        sources = _sources(step, plan)
        rendered = plan.render(every_leaf=self.every_leaf, sources=sources)
        print("\n".join([rendered, "", _gathering(step, plan, gathers_once(self.job)), *step.notes]))
        if self.html is not None:
            self._draw(self.html, step, plan, chip, sources)
        report: dict[str, Any] = plan.to_json()
        return report

    def _draw(self, path: Path, step: PlannedStep, plan: ShardingPlan, chip: Chip, sources: dict[Address, str]) -> None:
        name = self.recipe.rpartition(":")[2] or self.recipe
        page = explain_page(name, plan, _memory(step, plan, gathers_once(self.job)), chip, sources)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_report(path, page)
        except OSError as error:
            raise MachineError(f"--html={path} can't be written: {error}; name a file in a folder of yours") from error
        print(f"\ndrawn in {path}")


def _gathering(step: PlannedStep, plan: ShardingPlan, once: bool) -> str:
    """When the weights are gathered."""
    if plan.mesh.fsdp == 1:
        return "no weight is stored over fsdp, so that none is gathered"
    if step.grad_accum == 1:
        return "weights stored over fsdp are gathered where they are read, forward and backward"
    when = "once per step, for all of its" if once else "forward and backward, in each of the"
    return f"weights stored over fsdp are gathered {when} {step.grad_accum} microbatches"


def _memory(step: PlannedStep, plan: ShardingPlan, gather_once: bool) -> MemoryUse:
    """What a device holds at the peak of a step."""
    programs = trace_programs(
        step.loss, step.params, step.batch, num_microbatches=step.grad_accum, gather_once=gather_once
    )
    return count_memory(programs.gradient, programs.place(plan), plan, num_microbatches=step.grad_accum)


def _sources(step: PlannedStep, plan: ShardingPlan) -> dict[Address, str]:
    """The lines that make the pinned activations, with the equation's place."""
    if not plan.activations:
        return {}
    program = jaxprs.trace(step.loss, step.params, step.microbatch).jaxpr
    found = {made.address: rewrite.find(program, made.address) for made in plan.activations}
    return {
        address: f"{rewrite.source_of(equation)} (equation {'.'.join(map(str, address))})"
        for address, equation in found.items()
        if equation is not None
    }


def _spec(text: str) -> MeshSpec:
    """The spec that a `--mesh` flag names; only a -1 asks how many devices this machine has."""
    axes = text.partition("@")[0]
    spec = MeshSpec.parse(axes) if axes.strip() else MeshSpec(data=-1)
    return spec.resolve(jax.device_count()) if -1 in spec.sizes.values() else spec
