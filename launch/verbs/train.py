"""`jaxscale train`: trains a recipe in a run folder; the same command again resumes."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.train.signals import StopSignals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Trains a recipe; the same command again goes on from the last checkpoint.

    Every field of the recipe's job is a flag, e.g. --training.num-steps 200 or --operation.eval-every-steps 50.

    Example: jaxscale train two_tower_small --out runs/a --mesh fsdp=4,tensor=2 --training.num-steps 200
    """

    # The run folder.
    out: Path
    # As fsdp=4,tensor=2; empty: what the recipe says, else all devices on data.
    mesh: str = ""
    # RUN or RUN@step: a new run that begins with the state of another.
    fork_from: str = ""
    # A model folder, or the run folder that has one: a new run that begins with its parameters.
    init_from: str = ""
    # The recipe's job.
    job: Annotated[Any, tyro.conf.arg(name="")] = None

    @classmethod
    def for_recipe(cls, name: str, job: Any) -> Self:
        """The command of a recipe with the recipe's own values."""
        return cls(out=tyro.MISSING, job=job)

    def run(self) -> dict[str, Any]:
        """Trains, prints what the run came to, and returns it."""
        return {}
