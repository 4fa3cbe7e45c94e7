"""Dropless experts compiled for TPUs that nobody here has: rows go by ragged all-to-all, and no array has a copy of
every token for every expert.
"""

import dataclasses
import importlib.util
import math
import re

import jax
import pytest

from configs.mixtral import mixtral_tiny_dropless
from jaxscale.cost.compiler_dump import dump_options, dumped_text
from jaxscale.mesh import MeshSpec, describe_topology, make_mesh
from jaxscale.sharding.apply import apply_plan
from jaxscale.train.planned_step import derive_step

pytestmark = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"),
]

D, E, S, NUM_SEQUENCES = 512, 16, 256, 32


def job():
    tiny = mixtral_tiny_dropless()
    assert tiny.transformer.experts is not None
    experts = dataclasses.replace(tiny.transformer.experts, num_experts=E)
    transformer = dataclasses.replace(
        tiny.transformer, d_model=D, d_ff=D, head_dim=D // 4, vocab_size=256, max_positions=S, experts=experts
    )
    training = dataclasses.replace(tiny.training, global_batch_size=NUM_SEQUENCES, compute_dtype="bfloat16")
    return dataclasses.replace(tiny, transformer=transformer, sequence_length=S, training=training)


def program(spec, folder):
    """The compiled gradient of the loss, as text."""
    step, mesh = job().planned_step(), make_mesh(spec, describe_topology("v5p:2x2x1"))
    plan = derive_step(step, spec)
    gradient = jax.grad(apply_plan(plan, step.loss, mesh, step.params, step.batch))
    at = plan.shardings(mesh, step.params)
    jitted = jax.jit(gradient, in_shardings=(at, plan.shardings(mesh, step.batch)), out_shardings=at)
    jitted.lower(step.params, step.batch).compile(dump_options(folder))
    return dumped_text(folder)


@pytest.mark.parametrize("mesh", ["fsdp=4", "fsdp=2,tensor=2", "expert=4", "expert=2,tensor=2"])
def test_no_array_has_every_token_for_every_expert(mesh, tmp_path):
    spec = MeshSpec.parse(mesh)
    text = program(spec, tmp_path)
    assert ("ragged-all-to-all" in text) == (spec.expert > 1)
    # Ragged contractions by their kernel, which computes for the rows that are there.
    assert "tpu_custom_call" in text
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\b(?:bf16|f32)\[([\d,]+)\]", text)}
    # Neither matrices nor attention's scores.
    rows = [shape for shape in shapes if shape.count(D) < 2 and shape.count(S) < 2]
    num_tokens = NUM_SEQUENCES * S // (spec.fsdp * spec.expert)
    # With an expert axis what is received is, at worst, 2 choices of every token of the axis's devices.
    most = spec.expert * 2 * num_tokens * D
    assert max(map(math.prod, rows)) == most < E * num_tokens * D
