"""`jaxscale explain`: where every array of a recipe goes on a mesh, and why."""

import dataclasses
from typing import Annotated, Any, Self

import jax
import tyro

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Derives a recipe's sharding plan and prints it as a table; nothing is trained, and no device is needed.

    No data is read. Every field of the recipe's job is a flag.

    Example: jaxscale explain two_tower_tiny --mesh data=2,fsdp=2,tensor=2

    Attributes:
      mesh: as fsdp=4,tensor=2, of any number of devices; empty for what the recipe says, else this machine's on data.
      every_leaf: also print the optimizer's leaves that are split as the parameter they are made from.
      job: the recipe's job.
    """

    mesh: str = ""
    every_leaf: bool = False
    # tyro sees the class of the recipe's job through the default that `for_recipe` gives. An optional part that the
    # recipe has is flags like any other; one that it does without stays away.
    job: Annotated[Any, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = None

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for messages.
          job: what it returns.

        Raises:
          UsageError: the recipe is of something that has no training step to explain.
        """
        if not hasattr(job, "planned_step"):
            raise UsageError(f"recipe {name!r} gives a {type(job).__name__}, which has no training step to explain")
        return cls(job=job)

    def run(self) -> dict[str, Any]:
        """Prints the plan and returns it."""
        spec = _spec(self.mesh or self.job.operation.mesh)
        step = self.job.planned_step()
        plan = derive(step.loss, step.params, step.batch, spec, optimizer=step.optimizer)
        print(plan.render(every_leaf=self.every_leaf))
        report: dict[str, Any] = plan.to_json()
        return report


def _spec(text: str) -> MeshSpec:
    """The spec that a `--mesh` flag names; only a -1 asks how many devices this machine has."""
    axes = text.partition("@")[0]
    spec = MeshSpec.parse(axes) if axes.strip() else MeshSpec(data=-1)
    return spec.resolve(jax.device_count()) if -1 in spec.sizes.values() else spec
