"""Finds a recipe: a name in `configs/`, or `path/to/file.py:function`, so that a user's own needs no fork."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import configs
from jaxscale.errors import UsageError
from launch.cli import did_you_mean

Recipe = Callable[[], Any]


def all_recipes() -> dict[str, Recipe]:
    """Every recipe of `configs/`, by name: its public functions that take no argument."""
    found: dict[str, Recipe] = {}
    for module_info in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"configs.{module_info.name}")
        found.update(
            (name, function)
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if function.__module__ == module.__name__ and not name.startswith("_")
        )
    return found


def load(name: str) -> Any:
    """The job that a recipe returns.

    Args:
      name: a recipe's name, or `path/to/file.py:function`.

    Raises:
      UsageError: there is no such recipe, file or function.
    """
    if ":" in name or name.endswith(".py"):
        return _from_file(name)()
    recipes = all_recipes()
    if name not in recipes:
        raise UsageError(f"unknown recipe {name!r}{did_you_mean(name, recipes)}; `jaxscale recipes` lists them")
    return recipes[name]()


def _from_file(name: str) -> Recipe:
    path, _, function = name.partition(":")
    if not Path(path).is_file():
        raise UsageError(f"recipe {name!r}: there is no file {path!r}")
    spec = importlib.util.spec_from_file_location(f"recipe_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"recipe {name!r}: {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up, for annotations and for the comments that become help.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"recipe {name!r}: {path} does not run: {type(error).__name__}: {error}") from error
    recipe = getattr(module, function, None)
    if not callable(recipe):
        names = [n for n, _ in inspect.getmembers(module, inspect.isfunction)]
        raise UsageError(f"recipe {name!r}: {path} has no function {function!r}; it has {', '.join(names) or 'none'}")
    return recipe
