"""What the compiler says: totals, and a small step compiled on emulated devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale import typed_json
from jaxscale.cost.compiled import CompiledStep, compile_step, lower_step, totals
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.collectives import Collective


def collective(kind, axes, group_size, num_bytes, num_runs):
    return Collective(
        kind=kind,
        axes=axes,
        group_size=group_size,
        num_bytes=num_bytes,
        num_runs=num_runs,
        num_runs_known=True,
        op="",
        source="",
    )


def test_totals_by_axes_and_kind():
    found = totals(
        (
            collective("all_gather", ("fsdp",), 4, 400, 3),
            collective("all_reduce", ("tensor",), 2, 1000, 1),
            collective("all_gather", ("fsdp",), 4, 40, 1),
            collective("all_gather", ("fsdp",), 2, 40, 1),
        )
    )
    assert [(t.axes, t.kind, t.group_size, t.num_runs, t.num_bytes, t.bytes_moved) for t in found] == [
        (("tensor",), "all_reduce", 2, 1, 1000, 1000.0),
        (("fsdp",), "all_gather", 4, 4, 1240, 930.0),
        (("fsdp",), "all_gather", 2, 1, 40, 20.0),
    ]


def test_a_step_on_emulated_devices():
    mesh = make_mesh(MeshSpec(data=8))
    state = {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
    batch = {"x": jax.ShapeDtypeStruct((16, 64), jnp.float32)}

    def step(state, batch):
        loss, gradient = jax.value_and_grad(lambda w: jnp.mean(jnp.square(batch["x"] @ w)))(state["w"])
        return {"w": state["w"] - 0.1 * gradient}, loss

    lowered = lower_step(
        step,
        state,
        batch,
        state_shardings={"w": NamedSharding(mesh, P())},
        batch_shardings={"x": NamedSharding(mesh, P("data"))},
        mesh=mesh,
    )
    found = compile_step(lowered, mesh, mesh.shape)
    assert found.memory.arguments == 64 * 32 * 4 + 2 * 64 * 4
    assert found.memory.outputs >= 64 * 32 * 4 + 4
    assert found.memory.aliased == 64 * 32 * 4
    (total,) = found.collectives
    assert (total.axes, total.kind, total.group_size) == (("data",), "all_reduce", 8)
    # The gradient, and perhaps the loss with it in one operation.
    assert total.num_bytes == pytest.approx(64 * 32 * 4, abs=4)
    assert total.bytes_moved == pytest.approx(total.num_bytes * 2 * 7 / 8)
    assert found.loops_known
    assert typed_json.decode(CompiledStep, typed_json.encode(found)) == found
