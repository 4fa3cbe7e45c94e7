"""`jaxscale scaling retrieval`: dual towers of several sizes on several amounts of data, and the laws they follow."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from jaxscale import typed_json
from jaxscale.errors import UsageError
from retrieval.scaling.family import TowerFamily
from retrieval.scaling.laws import render
from retrieval.scaling.study import RESULTS, run_study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains a family of dual towers, measures their contrastive entropy and fits scaling laws; again, it goes on.

    The laws are L(N), L(D) and L(N, D), N being parameters outside the embeddings and D labelled pairs. The largest run
    is also held out and predicted by the law of the others. OUT/results is committed: points, laws and a page.

    Example: jaxscale scaling retrieval two_tower_family --job.data.folder BEIR --out STUDY

    Attributes:
      out: the study's folder; one run folder for each member below it.
      mesh: as fsdp=4,tensor=2; empty for what the recipe says, else all devices on data.
      family: the recipe's family.
    """

    out: Path
    mesh: str = ""
    family: Annotated[TowerFamily, tyro.conf.arg(name="")]

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe, with the recipe's own values.

        Args:
          name: the recipe's, for messages.
          job: what it returns.

        Raises:
          UsageError: the recipe is of no family.
        """
        if not isinstance(job, TowerFamily):
            raise UsageError(
                f"recipe {name!r} gives a {type(job).__name__}, expected a TowerFamily such as that of two_tower_family"
            )
        return cls(out=tyro.MISSING, family=job)

    def run(self) -> dict[str, Any]:
        """Runs the study, prints its table and its laws, and returns them."""
        points, laws = run_study(self._resolved(), self.out)
        print(render(points, laws))
        print(f"results: {self.out / RESULTS}")
        return {
            "out": str(self.out),
            "points": typed_json.encode(points),
            "laws": typed_json.encode(laws),
        }

    def _resolved(self) -> TowerFamily:
        if not self.mesh:
            return self.family
        job = self.family.job
        operation = dataclasses.replace(job.operation, mesh=self.mesh)
        return dataclasses.replace(self.family, job=dataclasses.replace(job, operation=operation))
