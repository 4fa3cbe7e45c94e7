"""`jaxscale recipes`: the recipes there are."""

import dataclasses
import inspect
from typing import Any

from launch.recipes import all_recipes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Lists the recipes, each with the first line of what it says of itself.

    Example: jaxscale recipes
    """

    def run(self) -> dict[str, Any]:
        """Prints the list and returns it."""
        lines = {name: (inspect.getdoc(recipe) or "").partition("\n")[0] for name, recipe in all_recipes().items()}
        width = max(map(len, lines))
        for name, line in sorted(lines.items()):
            print(f"{name:{width}}  {line}")
        return {"recipes": lines}
