"""Bytes moved by small decoders on meshes, against the closed forms of Megatron and ZeRO worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxscale.cost.communication import Traffic, count_traffic
from jaxscale.cost.placement import place
from jaxscale.cost.programs import forward_program, gradient_program
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from tests.jaxscale.cost import steps

L, D = steps.CONFIG.num_layers, steps.CONFIG.d_model
ACTIVATION = steps.BATCH * steps.LENGTH * D * 4
QKVO = [D * 8 * 8, D * 4 * 8, D * 4 * 8, D * 8 * 8]
MATRICES = 4 * L * (sum(QKVO) + 3 * D * steps.CONFIG.d_ff)
TABLES = 4 * D * steps.CONFIG.vocab_size
NORMS = 4 * D * (2 * L + 1)


def traffic(mesh: str, remat: bool) -> Traffic:
    return count_traffic(steps.program(remat), steps.placement(mesh, remat))


@pytest.mark.parametrize("remat", [False, True])
def test_tensor_parallel_adds_up_two_activations_a_layer_and_pass(remat):
    counted = traffic("tensor=4", remat)
    # Forward: after attention and after the MLP, and the embeddings' rows. Backward: what enters the attention, the
    # MLP and the output. Remat: the attention's once more; nothing needs what the MLP added.
    per_layer = 2 + 2 + (1 if remat else 0)
    expected = 2 * (3 / 4) * ACTIVATION * (L * per_layer + 2)
    large = sum(c.bytes_moved for c in counted.collectives if c.num_bytes == ACTIVATION)
    assert large == expected
    assert counted.bytes_moved(kind="all_reduce", axes=("tensor",)) == pytest.approx(expected, rel=0.01)
    assert counted.bytes_moved() == counted.bytes_moved(kind="all_reduce", axes=("tensor",))


@pytest.mark.parametrize("remat", [False, True])
def test_fsdp_gathers_forward_and_backward_and_scatters_once(remat):
    counted = traffic("fsdp=8", remat)
    moved = counted.by_kind_and_axes
    # A scanned layer's weights are gathered in either pass; the table, outside of the scan, once.
    assert moved["all_gather", ("fsdp",)] == (7 / 8) * (2 * MATRICES + TABLES)
    assert moved["reduce_scatter", ("fsdp",)] == (7 / 8) * (MATRICES + TABLES)
    # The norms' scales are whole on every device, and so is the loss.
    assert moved["all_reduce", ("fsdp",)] == pytest.approx(2 * (7 / 8) * NORMS, rel=0.01)
    assert set(moved) == {("all_gather", ("fsdp",)), ("reduce_scatter", ("fsdp",)), ("all_reduce", ("fsdp",))}


def test_data_parallel_adds_up_every_gradient():
    counted = traffic("data=4", True)
    assert counted.bytes_moved(kind="all_reduce", axes=("data",)) == pytest.approx(
        2 * (3 / 4) * (MATRICES + TABLES + NORMS), rel=0.001
    )


def test_data_and_fsdp_and_tensor_together():
    moved = traffic("data=2,fsdp=2,tensor=2", True).by_kind_and_axes
    # Each device's matrices are half of all by tensor; what fsdp scattered is again half of that.
    weights = (MATRICES + TABLES) / 2
    assert moved["reduce_scatter", ("fsdp",)] == weights / 2
    assert moved["all_reduce", ("data",)] == 2 / 2 * weights / 2
    # A quarter of the batch each.
    assert moved["all_reduce", ("tensor",)] == pytest.approx(2 / 2 * (ACTIVATION / 4) * (5 * L + 2), rel=0.01)


def test_slices_add_up_over_the_data_centre_network():
    counted = traffic("slice=2,fsdp=4", True)
    moved = counted.by_kind_and_axes
    assert moved["all_gather", ("fsdp",)] == (3 / 4) * (2 * MATRICES + TABLES)
    # What the slices exchange is what fsdp has scattered, and a quarter of the norms' gradients.
    expected = 2 / 2 * (MATRICES + TABLES + NORMS) / 4
    assert counted.bytes_moved(network="dcn") == pytest.approx(expected, rel=0.01)
    assert all(("slice" in c.axes) == (c.network == "dcn") for c in counted.collectives)


def test_one_device_moves_nothing():
    assert traffic("data=1", True).collectives == ()


def test_a_collective_names_its_line_and_its_runs():
    large = [c for c in traffic("tensor=4", False).collectives if c.num_bytes == ACTIVATION]
    assert all(c.source for c in large)
    assert sum(c.num_runs for c in large) == 4 * L + 2


def test_microbatches_move_as_often():
    counted = traffic("fsdp=8", True)
    assert counted.times(3).bytes_moved() == 3 * counted.bytes_moved()


def test_the_other_examples_of_a_batch_are_gathered():
    """Every query against every document: the scores are split by query, so the documents are gathered."""

    def loss(w, batch):
        queries, documents = batch["q"] @ w, batch["d"] @ w
        return jnp.tanh(queries @ documents.T).sum()

    w = jax.ShapeDtypeStruct((8, 16), "float32")
    batch = {name: jax.ShapeDtypeStruct((32, 8), "float32") for name in "qd"}
    plan = derive(loss, w, batch, MeshSpec(data=4), limits=Limits())
    program = forward_program(loss, w, batch)
    counted = count_traffic(program, place(program, plan.mesh, plan.leaves))
    assert counted.bytes_moved(kind="all_gather") == (3 / 4) * (32 * 16 * 4)
    # Backward, the documents' gradient is a sum over all queries.
    program = gradient_program(loss, w, batch)
    counted = count_traffic(program, place(program, plan.mesh, plan.leaves))
    assert counted.bytes_moved() > (3 / 4) * (32 * 16 * 4)


def test_tokens_go_to_their_experts_and_come_back():
    """Dense dispatch of groups g: to the experts and back in the forward pass, and the same for the gradients."""
    g, s, e, c, d, f = 16, 8, 4, 4, 16, 256

    def loss(params, batch):
        x = batch["x"]
        chosen = jax.nn.softmax(jnp.einsum("gsd,de->gse", x, params["router"]))
        slots = jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, c), 3) == batch["slot"][..., None, None]
        mask = jnp.where(slots, chosen[..., None], 0.0)
        sent = jnp.einsum("gsec,gsd->gecd", mask, x)
        made = jnp.einsum("gecf,efd->gecd", jnp.sin(jnp.einsum("gecd,edf->gecf", sent, params["up"])), params["down"])
        return jnp.sum(jnp.square(jnp.einsum("gsec,gecd->gsd", mask, made)))

    shapes = {"router": (d, e), "up": (e, d, f), "down": (e, f, d)}
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    batch = {"x": jax.ShapeDtypeStruct((g, s, d), "float32"), "slot": jax.ShapeDtypeStruct((g, s), "int32")}
    plan = derive(loss, params, batch, MeshSpec(expert=4))
    leaves = [
        dataclasses.replace(leaf, spec=(("expert",), (), ())) if leaf.path in ("up", "down") else leaf
        for leaf in plan.leaves
    ]
    forward, gradient = forward_program(loss, params, batch), gradient_program(loss, params, batch)
    tokens = (3 / 4) * 4 * (g // 4) * e * c * d
    assert count_traffic(forward, place(forward, plan.mesh, leaves)).bytes_moved(kind="all_to_all") == 2 * tokens
    counted = count_traffic(gradient, place(gradient, plan.mesh, leaves))
    # Back they go once more for the mask's gradient, which needs what the experts made: it is kept where it was used.
    assert counted.bytes_moved(kind="all_to_all") == 4 * tokens
    # Every expert's gradient is whole where the expert is; only the router's is summed.
    assert counted.bytes_moved(kind="reduce_scatter") == 0
    assert counted.bytes_moved(kind="all_reduce") <= 2 * (3 / 4) * 4 * (d * e + 1)
