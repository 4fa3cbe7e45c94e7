"""Recipes compiled for TPU pods, at their full depth: they fit, and slices meet once per step, to add up the gradient.

Cut: the compiler stops when its program is complete and its memory known, before machine code; the pods are smaller
than those that trained such models. `pytest -s` prints the bytes.
"""

import dataclasses
import importlib.util

import pytest

from jaxscale import typed_json
from jaxscale.mesh import MeshSpec
from jaxscale.train.planned_step import derive_step
from launch import recipes
from launch.compile_recipe import CompileRequest, compile_recipe

pytestmark = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"),
]

# What crosses the data-centre network but is no gradient: the number of predicted tokens of every microbatch.
MOST_BESIDES = 0.001


def compiled(recipe, topology, num_slices, mesh, grad_accum):
    """The job with microbatches, and what the compiler made of its step."""
    job = recipes.load(recipe)
    job = dataclasses.replace(job, training=dataclasses.replace(job.training, grad_accum=grad_accum))
    made = compile_recipe(
        CompileRequest(
            recipe=recipe,
            job=typed_json.encode(job),
            topology=topology,
            num_slices=num_slices,
            mesh=mesh,
            machine_code=False,
        )
    )
    assert made.step.out_of_memory is None, made.step.out_of_memory
    assert made.step.loops_known
    assert made.rematerialized == ()
    return job, made.step


@pytest.mark.parametrize(
    ("recipe", "topology", "mesh", "grad_accum"),
    [
        ("palm_540b", "v5p:8x8x16", "slice=2,fsdp=128,tensor=8", 4),
        ("llama3_70b", "v5p:4x8x8", "slice=2,fsdp=64,tensor=4", 4),
        ("t5_large", "v5e:4x4", "slice=2,fsdp=8,tensor=2", 4),
        ("mixtral_8x7b", "v5p:4x8x8", "slice=2,fsdp=32,expert=8", 2),
    ],
)
def test_slices_meet_once_per_step_to_add_up_the_gradient(recipe, topology, mesh, grad_accum):
    job, step = compiled(recipe, topology, 2, mesh, grad_accum)
    # What one device has of the gradient, in float32: each byte of it crosses once, however many the microbatches.
    gradient = derive_step(job.planned_step(), MeshSpec.parse(mesh)).total_bytes_per_device("parameter")
    crossing = [total for total in step.collectives if "slice" in total.axes]
    assert {(total.axes, total.kind) for total in crossing} == {(("slice",), "all_reduce")}
    (num_bytes,) = (total.num_bytes for total in crossing)
    print(
        f"{recipe} on 2 x {topology}, {mesh}, {grad_accum} microbatches: {num_bytes:,} bytes cross the slices per "
        f"device and step, {gradient:,} of them ({gradient / num_bytes:.4%}) the gradient; "
        f"{step.needed_bytes / 2**30:.1f} GiB needed on a device"
    )
    assert gradient <= num_bytes <= gradient / (1 - MOST_BESIDES)


def test_experts_compile_for_a_pod():
    _, step = compiled("mixtral_8x7b", "v5p:4x8x8", 1, "fsdp=32,expert=8", 4)
    assert {("expert",), ("fsdp",)} <= {total.axes for total in step.collectives}
    print(f"mixtral_8x7b on v5p:4x8x8: {step.needed_bytes / 2**30:.1f} GiB needed on a device")


def test_dropless_experts_compile_for_a_pod():
    """The buffers that receive rows hold the worst case: with one expert a device, all tokens of 8 devices."""
    _, step = compiled("mixtral_8x7b_dropless", "v5p:4x4x8", 1, "fsdp=16,expert=8", 8)
    sent = [total for total in step.collectives if total.kind == "all_to_all"]
    assert {total.axes for total in sent} == {("expert",)}
    # Rows there and back, forward, computed again, and backward, in each of 32 layers and 8 microbatches.
    assert sum(total.num_runs for total in sent) >= 6 * 32 * 8
    # One sequence a device and microbatch.
    largest_rows = 8 * 4096 * 14336 * 2
    assert not [b for b in step.buffers if "shard_map" in b.op and b.num_bytes > largest_rows]
    print(f"mixtral_8x7b_dropless on v5p:4x4x8: {step.needed_bytes / 2**30:.1f} GiB needed on a device")
