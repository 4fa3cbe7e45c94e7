"""A dual tower of 7 billion parameters on 16,384 pairs a step, as a TPU program: what a device holds, what it sends.

`pytest -s` prints the bytes.
"""

import dataclasses
import importlib.util

import jax
import pytest

from configs.two_tower import two_tower_llama2_7b
from jaxscale import typed_json
from jaxscale.cost.chips import Topology
from launch.compile_recipe import CompileRequest, compile_recipe

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)"),
]
TOPOLOGY, MESH, NUM_DEVICES, FSDP = "v5p:4x4x8", "data=2,fsdp=64", 128, 64
NUM_PAIRS, NUM_CHUNKS = 16_384, 2


@pytest.fixture(scope="module")
def job():
    job = two_tower_llama2_7b()
    return dataclasses.replace(
        job,
        contrastive=dataclasses.replace(job.contrastive, cache_chunks=NUM_CHUNKS),
        training=dataclasses.replace(job.training, global_batch_size=NUM_PAIRS),
    )


@pytest.fixture(scope="module")
def step(job):
    request = CompileRequest(
        recipe="two_tower_llama2_7b",
        job=typed_json.encode(job),
        topology=TOPOLOGY,
        num_slices=1,
        mesh=MESH,
        machine_code=False,
    )
    made = compile_recipe(request)
    assert made.step.out_of_memory is None
    assert made.rematerialized == ()
    return made.step


def test_a_device_holds_its_part_of_the_state_and_one_chunks_activations(job, step):
    planned = job.planned_step()
    num_params = sum(leaf.size for leaf in jax.tree.leaves(planned.params))
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in planned.batch.values()) // NUM_DEVICES
    parameters, moments = (4 * number * num_params // FSDP for number in (1, 2))
    memory = step.memory
    print(
        f"bytes of a device: parameters {parameters:,}, optimizer {moments:,}, batch {batch:,}; arguments as compiled "
        f"{memory.arguments:,}, temporaries {memory.temporaries:,}, peak {memory.peak:,}"
    )
    assert memory.arguments == pytest.approx(parameters + moments + batch, rel=0.01)
    # What the backward pass starts from: the stream before every layer, in bfloat16, of one chunk's longer side.
    model, length = job.towers.transformer, job.data.max_lengths[1]
    stream = 2 * model.num_layers * NUM_PAIRS // NUM_CHUNKS // NUM_DEVICES * length * model.d_model
    assert stream < memory.temporaries < 2.5 * stream
    assert memory.peak < Topology.parse(TOPOLOGY).chip.limit_bytes_per_device


def test_gradients_of_kernels_are_scattered_once_a_chunk(job, step):
    sent = {
        kind: sum(t.num_bytes for t in step.collectives if t.kind == kind) for kind in ("reduce_scatter", "all_reduce")
    }
    print(f"bytes that a device reduces: {sent}")
    model = job.towers.transformer
    kernels = 4 * model.num_layers * model.d_model * (4 * model.d_model + 3 * model.d_ff)
    # Of queries and of documents.
    assert sent["reduce_scatter"] == pytest.approx(2 * NUM_CHUNKS * kernels, rel=0.05)
    assert sent["all_reduce"] < 0.05 * sent["reduce_scatter"]
