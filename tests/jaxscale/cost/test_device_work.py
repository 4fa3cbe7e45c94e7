"""What one device computes: its share where the work is split, all of it where it is not."""

import jax
import jax.numpy as jnp
import pytest

from jaxscale.cost.device_work import count_device_work, update_hbm_bytes
from jaxscale.cost.flops import count_flops
from jaxscale.cost.placement import place
from jaxscale.cost.programs import forward_program
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from tests.jaxscale.cost import steps


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "tensor=4", "data=2,fsdp=2,tensor=2"])
def test_a_decoder_is_shared_evenly(mesh):
    work = count_device_work(steps.program(True), steps.placement(mesh, True))
    whole = count_flops(steps.program(True)).total
    assert sum(work.flops.values()) * steps.plan(mesh).mesh.num_devices == whole


def test_bytes_of_one_matmul():
    def loss(w, batch):
        return jnp.tanh(batch["x"] @ w).sum()

    w, batch = jax.ShapeDtypeStruct((64, 32), "float32"), {"x": jax.ShapeDtypeStruct((128, 64), "float32")}
    plan = derive(loss, w, batch, MeshSpec(data=4))
    program = forward_program(loss, w, batch)
    work = count_device_work(program, place(program, plan.mesh, plan.leaves))
    # x, w, and what the product writes and the sum reads again; the sum itself is 4 bytes.
    assert work.hbm_bytes == 4 * (32 * 64 + 64 * 32 + 2 * 32 * 32 + 1)
    assert work.flops == {"float32": 2 * 32 * 64 * 32}
    assert work.times(3).hbm_bytes == 3 * work.hbm_bytes


def test_the_update_reads_and_writes_parameters_and_state():
    plan = steps.plan("fsdp=8")
    parameters, state = (plan.total_bytes_per_device(role) for role in ("parameter", "optimizer"))
    assert update_hbm_bytes(plan) == 3 * parameters + 2 * state
