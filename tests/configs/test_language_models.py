"""Every language model's recipe: pure data, of the published size, planned and explained without any data."""

import inspect
import json

import jax
import jax.numpy as jnp
import pytest

from configs import bert, gpt, llama, mixtral, palm, t5
from jaxscale import typed_json
from jaxscale.nn import functional
from jaxscale.sharding.plan import ShardingPlan
from launch import cli
from launch.recipes import all_recipes

MODULES = (bert, gpt, llama, mixtral, palm, t5)
RECIPES = {
    name: recipe
    for name, recipe in all_recipes().items()
    if recipe.__module__ in {module.__name__ for module in MODULES}
}


def of_gpt(num_layers, d_model, vocab_size, num_positions):
    return 12 * num_layers * d_model**2 + 13 * num_layers * d_model + (vocab_size + num_positions + 2) * d_model


def of_palm(num_layers, d_model, num_heads):
    attention = 2 * d_model * num_heads * 256 + 2 * d_model * 256
    return num_layers * (attention + 3 * d_model * 4 * d_model + d_model) + (256_000 + 1) * d_model


# Where there is a published checkpoint its count, else the closed formula; then what the paper says, in 10^9.
NUM_PARAMS = {
    "llama_10m": (9_703_680, 0.0097),
    "llama2_7b": (6_738_415_616, 6.74),
    "llama2_70b": (68_976_648_192, 69.0),
    "llama3_8b": (8_030_261_248, 8.0),
    "llama3_70b": (70_553_706_496, 70.6),
    "llama3_405b": (405_853_388_800, 405.9),
    "gpt2_12m": (of_gpt(6, 256, 32768, 512), 0.01326),
    "gpt2": (124_439_808, 0.124),
    "gpt3_175b": (of_gpt(96, 12288, 50257, 2048), 174.6),
    # 4 (2 * 128 * 128 + 2 * 128 * 32 + 3 * 128 * 512 + 128) + (4096 + 1) 128
    "palm_tiny": (1_475_200, 0.001475),
    "palm_8b": (of_palm(32, 4096, 16), 8.63),
    "palm_540b": (of_palm(118, 18432, 48), 540.35),
    # 2 (2 * 128 * 128 + 2 * 128 * 64 + 4 (3 * 128 * 256 + 128) + 2 * 128) + 2 * 4096 * 128 + 128
    "mixtral_tiny": (1_934_976, 0.001935),
    # Tables 2 * 4224 * 128 and 2 * 32 * 4, norms 12 * 128, and 2 layers of (12 * 128 * 128 + 6 * 128 * 256)
    "t5_tiny": (2 * 4224 * 128 + 2 * 32 * 4 + 12 * 128 + 2 * (12 * 128 * 128 + 6 * 128 * 256), 0.0018696),
    "mixtral_8x7b": (46_702_792_704, 46.7),
    "mixtral_tiny_dropless": (1_934_976, 0.001935),
    "mixtral_8x7b_dropless": (46_702_792_704, 46.7),
    "t5_large": (783_150_080, 0.783),
    "bert_base": (109_482_240 - 590_592, 0.109),
}


def test_every_recipe_has_its_count():
    assert RECIPES.keys() == NUM_PARAMS.keys()


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_a_recipe_has_as_many_parameters_as_were_published(name):
    exact, billions = NUM_PARAMS[name]
    config = RECIPES[name]().transformer
    assert config.num_params == exact == pytest.approx(billions * 1e9, rel=5e-3)
    shapes = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == exact


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_a_recipe_is_data_and_says_what_it_is(name):
    job, says = RECIPES[name](), inspect.getdoc(RECIPES[name])
    assert job == RECIPES[name]()
    assert typed_json.decode(type(job), json.loads(json.dumps(typed_json.encode(job)))) == job
    assert f"jaxscale explain {name} --mesh " in says
    assert f"{job.transformer.num_params:,} parameters" in says
    assert "Source: " in says
    assert "Count: " in says
    assert job.operation.mesh == ""


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_a_planned_step_is_traced_on_shapes_alone(name):
    step = RECIPES[name]().planned_step()
    says = inspect.getdoc(RECIPES[name])
    assert f"{step.num_tokens:,} tokens per step" in says
    program = jax.make_jaxpr(step.loss)(step.params, step.batch)
    assert [(aval.shape, aval.dtype) for aval in program.out_avals] == [((), jnp.float32)]


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_a_small_version_has_the_same_leaves(name):
    large, small = RECIPES[name]().planned_step(), RECIPES[name]().shrunk().planned_step()
    assert jax.tree.structure(small.params) == jax.tree.structure(large.params)
    assert sum(leaf.size for leaf in jax.tree.leaves(small.params)) < 500_000
    assert jax.eval_shape(small.loss, small.params, small.batch).dtype == jnp.float32


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_the_command_in_its_docstring_explains_it(name, capsys, tmp_path):
    says = inspect.getdoc(RECIPES[name])
    (words,) = [line.split()[2:] for line in says.splitlines() if line.startswith("Command: ")]
    assert cli.main([*words, "--json", str(tmp_path / "plan.json")]) == 0
    plan = ShardingPlan.from_json(json.loads((tmp_path / "plan.json").read_text()))
    assert plan.not_understood == ()
    assert f"mesh {words[-1]}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_training_one_without_text_is_refused_in_one_message(name, capsys, tmp_path):
    # A mesh that any of their batches suits, so that nothing else is said.
    assert cli.main(["train", name, "--out", str(tmp_path / "run"), "--mesh", "data=1@0"]) == 2
    assert "data.datasets is not given; add `--data.datasets DIR`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
