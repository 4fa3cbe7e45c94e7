"""Every recipe: pure data, says its command, and passes its own checks once its paths are given."""

import dataclasses
import json

import jax
import pytest

from configs import two_tower
from jaxscale import frozen, typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from launch.recipes import all_recipes

RECIPES = {name: recipe for name, recipe in all_recipes().items() if recipe.__module__ == two_tower.__name__}


def test_the_recipes_are_found_by_name():
    assert {"two_tower_small", "two_tower_minilm", "two_tower_demo", "two_tower_tiny"} <= RECIPES.keys()


def test_the_towers_of_7b_have_the_sizes_they_say():
    whole, factors = (
        sum(leaf.size for leaf in jax.tree.leaves(frozen.trained(RECIPES[name]().planned_step().params)))
        for name in ("two_tower_llama2_7b", "two_tower_llama2_7b_lora")
    )
    assert f"{whole:,} parameters" in two_tower.two_tower_llama2_7b.__doc__
    assert f"{factors:,} parameters" in two_tower.two_tower_llama2_7b_lora.__doc__


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_data_and_says_its_command(name):
    job = RECIPES[name]()
    assert job == RECIPES[name]()
    assert typed_json.decode(type(job), json.loads(json.dumps(typed_json.encode(job)))) == job
    assert f"jaxscale train {name} " in RECIPES[name].__doc__


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_lacks_its_paths_only(name):
    job = RECIPES[name]()
    mesh = MeshSpec.parse(job.operation.mesh).resolve(8) if job.operation.mesh else MeshSpec(data=8)
    with pytest.raises(UsageError, match=r"add `--data\.folder DIR`"):
        job.check(mesh)
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, folder="somewhere"))
    if job.towers.transformer is None or job.towers.lora is not None:
        with pytest.raises(UsageError, match=r"add `--towers\.init-from DIR`"):
            job.check(mesh)
        job = job.starting_from("somewhere")
    job.check(mesh)
