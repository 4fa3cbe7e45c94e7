"""Recipes of distillation: pure data, say their command, and pass their own checks once their paths are given."""

import dataclasses
import json

import pytest

from configs import distill
from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from launch.recipes import all_recipes
from retrieval.towers.distillation.job import DistillationJob

RECIPES = {name: recipe for name, recipe in all_recipes().items() if recipe.__module__ == distill.__name__}
MESH = MeshSpec(data=8)


@pytest.mark.parametrize("name", ["distill_query_tower", "refine_query_tower", "distill_query_tower_tiny"])
def test_a_recipe_is_data_says_its_command_and_lacks_its_paths_only(name):
    job = RECIPES[name]()
    assert job == RECIPES[name]()
    assert typed_json.decode(DistillationJob, json.loads(json.dumps(typed_json.encode(job)))) == job
    assert f"jaxscale distill {name} " in RECIPES[name].__doc__
    with pytest.raises(UsageError, match=r"add `--data\.folder DIR`"):
        job.check(MESH)
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, folder="somewhere"))
    with pytest.raises(UsageError, match=r"add `--teacher\.retriever DIR`"):
        job.check(MESH)
    job = dataclasses.replace(job, teacher=dataclasses.replace(job.teacher, retriever="large", vectors="vectors"))
    if job.student.num_layers is None:
        with pytest.raises(UsageError, match="`--init-from DIR`"):
            job.check(MESH)
        job = job.starting_from("somewhere")
    job.check(MESH)
