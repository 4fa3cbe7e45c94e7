"""Weights gathered once per step, in TPU programs: what is gathered falls by the microbatches, and copies are held.

`pytest -s` prints the bytes.
"""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from jaxscale import typed_json
from jaxscale.cost.chips import Topology
from jaxscale.cost.estimate import estimate_step, trace_programs
from jaxscale.mesh import MeshSpec
from jaxscale.nn.families import decoder_config
from jaxscale.train.planned_step import derive_step
from launch.compile_recipe import CompileRequest, compile_recipe
from tests.launch.planned_recipes import small_llama

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"),
]
RECIPE = f"{Path(__file__).parent / 'planned_recipes.py'}:small_llama"
TOPOLOGY, MESH = "v5e:2x4", "fsdp=8"
ONCE, EACH = "step", "microbatch"


def compiled(job, gather_weights, mesh=MESH):
    """What the compiler makes of the job's step."""
    job = dataclasses.replace(job, operation=dataclasses.replace(job.operation, gather_weights=gather_weights))
    made = compile_recipe(
        CompileRequest(
            recipe=RECIPE,
            job=typed_json.encode(job),
            topology=TOPOLOGY,
            num_slices=1,
            mesh=mesh,
            machine_code=False,
        )
    )
    assert made.step.out_of_memory is None
    assert made.step.loops_known
    assert made.rematerialized == ()
    return made.step


def predicted(job, gather_weights):
    """What is predicted of it."""
    step = job.planned_step()
    programs = trace_programs(
        step.loss,
        step.params,
        step.batch,
        num_microbatches=step.grad_accum,
        gather_once=gather_weights == ONCE,
    )
    return estimate_step(programs, derive_step(step, MeshSpec.parse(MESH)), Topology.parse(TOPOLOGY))


def gathered(step, kind="all_gather"):
    return sum(total.num_bytes for total in step.collectives if total.kind == kind)


def test_each_weight_is_gathered_once_instead_of_twice_in_every_microbatch():
    job = small_llama()
    model, number = job.transformer, job.training.grad_accum
    once, each = compiled(job, ONCE), compiled(job, EACH)
    # In bfloat16: the kernels, and the table that the output reads too.
    table = 2 * model.vocab_size * model.d_model
    layers = 2 * model.num_params - table
    # Rows that are looked up are gathered in float32, in every microbatch, either way.
    rows = 4 * job.training.global_batch_size * job.sequence_length * model.d_model
    # The table is read by the last matmul forward and the first backward, and gathered once for both.
    print(f"all-gathers of a device: {gathered(each):,} bytes in every microbatch, {gathered(once):,} once per step")
    assert gathered(each) - rows == pytest.approx(number * (2 * layers + table), rel=0.01)
    assert gathered(once) - rows == pytest.approx(layers + table, rel=0.01)
    assert gathered(once, "reduce_scatter") <= gathered(each, "reduce_scatter")


def test_the_copies_are_held_as_predicted():
    wide = decoder_config(
        num_layers=12, d_model=2048, num_heads=16, num_kv_heads=16, d_ff=5632, vocab_size=16384, max_positions=1024
    )
    job = small_llama()
    training = dataclasses.replace(job.training, global_batch_size=32)
    job = dataclasses.replace(job, transformer=wide, sequence_length=1024, training=training)
    once, each = compiled(job, ONCE), compiled(job, EACH)
    grown, estimate = once.memory.temporaries - each.memory.temporaries, predicted(job, ONCE)
    print(
        f"temporaries of a device: {each.memory.temporaries:,} bytes, {once.memory.temporaries:,} with copies: "
        f"{grown:,} more; predicted {estimate.gathered_bytes:,} of copies"
    )
    assert grown == pytest.approx(estimate.gathered_bytes, rel=0.15)
    assert estimate.memory.peak == pytest.approx(once.memory.peak, rel=0.1)
    assert predicted(job, EACH).memory.peak == pytest.approx(each.memory.peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["fsdp=4,tensor=2", "data=2,fsdp=4"])
def test_nothing_is_copied_whole_on_other_meshes(mesh):
    job = small_llama()
    once, each = compiled(job, ONCE, mesh), compiled(job, EACH, mesh)
    print(f"{mesh}: all-gathers of a device: {gathered(each):,} bytes in every microbatch, {gathered(once):,} once")
    assert gathered(once) < gathered(each) / 2
