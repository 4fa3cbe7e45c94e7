"""Recipes with attention by a kernel, compiled for TPUs that need not be there: what is in the program, and how large.

`pytest -s` prints the bytes.
"""

import dataclasses
import importlib.util
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, describe_topology, make_mesh
from jaxscale.nn.attention_call import AttentionCall
from jaxscale.nn.attention_kernels import Island, Places
from launch import recipes
from launch.compile_recipe import CompileRequest, compile_recipe, lower_here

RECIPES = Path(__file__).parent / "planned_recipes.py"
MESH = MeshSpec(fsdp=4, tensor=2)
NEEDS_LIBTPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
LENGTH, PARTS = 2048, ("long_decoder", "long_packed_decoder")
# XLA's name for what Pallas makes for a TPU, and of splash attention the forward and the two backward kernels.
CALL, KERNELS = "tpu_custom_call", {"fwd", "dq", "dkv"}


def request(recipe, attention, topology="v5e:2x4", mesh=str(MESH)):
    name = f"{RECIPES}:{recipe}"
    job = recipes.load(name)
    job = dataclasses.replace(job, training=dataclasses.replace(job.training, attention=attention))
    return CompileRequest(recipe=name, job=typed_json.encode(job), topology=topology, num_slices=1, mesh=mesh)


def scores(text):
    """Shapes of a program that have all pairs of positions of the examples of a device."""
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", text)}
    return {shape for shape in shapes if shape.count(LENGTH) == 2 and len(shape) > 2}


@pytest.mark.aot
@NEEDS_LIBTPU
@pytest.mark.parametrize("recipe", PARTS)
def test_a_step_with_splash_attention_needs_less_memory(recipe):
    asked = {name: dataclasses.replace(request(recipe, name), machine_code=False) for name in ("splash", "plain")}
    steps = {name: compile_recipe(one).step for name, one in asked.items()}
    needed = {name: step.needed_bytes for name, step in steps.items()}
    print(f"{recipe} on v5e:2x4, {MESH}: {needed} bytes needed on a device")
    assert needed["splash"] < needed["plain"] / 4
    largest = {name: {buffer.shape for buffer in step.buffers} for name, step in steps.items()}
    assert {name: bool(scores(" ".join(shapes))) for name, shapes in largest.items()} == {
        "splash": False,
        "plain": True,
    }


@pytest.mark.aot
@pytest.mark.slow
@NEEDS_LIBTPU
@pytest.mark.parametrize("recipe", PARTS)
def test_a_compiled_step_has_the_kernels_forward_and_backward_and_no_scores(recipe):
    text = lower_here(request(recipe, "splash"))[0].compile().as_text()
    kernels = re.findall(rf"%splash_mha_(fwd|dq|dkv)_\w+[.\d]* = .* custom-call\(.*{CALL}", text)
    assert set(kernels) == KERNELS
    assert scores(text) == set()


@pytest.mark.aot
@NEEDS_LIBTPU
def test_what_is_compiled_beside_a_prediction_is_plain_unless_the_job_names_a_kernel():
    found = {name: lower_here(request("long_packed_decoder", name))[0].as_text() for name in ("auto", "splash")}
    assert CALL not in found["auto"]
    assert CALL in found["splash"]


@pytest.mark.aot
@NEEDS_LIBTPU
@pytest.mark.parametrize(("width", "length"), [(64, 2048), (128, 384), (256, 2048)])
def test_every_width_compiles_forward_and_backward(width, length):
    mesh = make_mesh(MESH, describe_topology("v5e:2x4"))
    at, rows = (NamedSharding(mesh, P(*axes)) for axes in (("fsdp", None, "tensor"), ("fsdp",)))
    call = AttentionCall(causal=True, scaled=True, operands=("query_groups", "key_groups"))
    island = Island(call=call, kernel="splash", places=Places(query=at, key=at))
    query, key = (jax.ShapeDtypeStruct((8, length, n, width), jnp.bfloat16, sharding=at) for n in (4, 2))
    groups = jax.ShapeDtypeStruct((8, length), jnp.int32, sharding=rows)
    gradient = jax.grad(lambda *heads: jnp.sum(island(*heads[:3], heads[3], heads[3])), argnums=(0, 1, 2))
    assert jax.jit(gradient).lower(query, key, key, groups).compile().as_text().count(CALL) == len(KERNELS)


def test_a_kernel_that_the_devices_do_not_have_is_refused_by_its_name():
    with pytest.raises(UsageError, match=r"attention=splash can't compute .* it runs on TPUs, not on cpu; use auto"):
        compile_recipe(request("tiny_decoder", "splash", topology="cpu:8"))
