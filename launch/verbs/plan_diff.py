"""`jaxscale plan diff`: what changed between two plans."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale import typed_json
from launch.plan_difference import differences, read_plan, render


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Compares two plans: mesh, specs of leaves, memory by class, bytes by collective and axis, step time, verdict.

    Both are files that `plan --json` wrote, also where a plan did not fit; of what `explain --json` wrote, the mesh and
    the leaves are compared. What is the same is left out.

    Example: jaxscale plan diff fsdp.json tensor.json

    Attributes:
      before: the first plan.
      after: the second.
    """

    before: Annotated[Path, tyro.conf.Positional]
    after: Annotated[Path, tyro.conf.Positional]

    def run(self) -> dict[str, Any]:
        """Prints the differences and returns them; numbers are bytes, FLOPs and seconds.

        Raises:
          DataError: a file can't be read, or is no plan.
        """
        first, second = read_plan(self.before), read_plan(self.after)
        found = differences(first, second)
        print(render(first, second, found))
        return {"before": str(self.before), "after": str(self.after), "differences": typed_json.encode(found)}
