"""The recipes of re-rankers: pure data, say their command, and pass their own checks once their paths are given."""

import dataclasses
import json

import pytest

from configs import reranker
from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from launch.recipes import all_recipes

RECIPES = {name: recipe for name, recipe in all_recipes().items() if recipe.__module__ == reranker.__name__}


def test_the_recipes_are_found_by_name():
    assert RECIPES.keys() == {"reranker_tiny", "reranker_minilm"}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_data_says_its_command_and_lacks_its_paths_only(name):
    job = RECIPES[name]()
    assert typed_json.decode(type(job), json.loads(json.dumps(typed_json.encode(job)))) == job
    assert f"jaxscale train {name} " in RECIPES[name].__doc__
    with pytest.raises(UsageError, match=r"add `--data\.folder DIR`"):
        job.check(MeshSpec(data=8))
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, folder="somewhere"))
    if job.model.transformer is None:
        with pytest.raises(UsageError, match=r"add `--model\.init-from DIR`"):
            job.check(MeshSpec(data=8))
        job = job.starting_from("somewhere")
    job.check(MeshSpec(data=8))
