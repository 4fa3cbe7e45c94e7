"""The peak of a step's memory by class, against sums worked out by hand for a scan and a small decoder."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxscale.cost.memory import MemoryUse, count_memory
from jaxscale.cost.placement import place
from jaxscale.cost.programs import gradient_program, microbatch_of
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from tests.jaxscale.cost import steps

NUM_LAYERS, BATCH, WIDTH = 24, 512, 64
ACTIVATION, WEIGHTS = 4 * BATCH * WIDTH, 4 * NUM_LAYERS * WIDTH * WIDTH


def chain_loss(remat: bool):
    def loss(params, batch):
        def body(x, w):
            return jnp.sin(x @ w), None

        return jax.lax.scan(jax.checkpoint(body) if remat else body, batch["x"], params)[0].sum()

    return loss


def chain(remat: bool, mesh: str = "data=1", **options) -> MemoryUse:
    params = jax.ShapeDtypeStruct((NUM_LAYERS, WIDTH, WIDTH), "float32")
    batch = {"x": jax.ShapeDtypeStruct((BATCH, WIDTH), "float32")}
    part = microbatch_of(batch, options.get("num_microbatches", 1))
    plan = derive(chain_loss(remat), params, part, MeshSpec.parse(mesh), optimizer=optax.adamw(1e-3))
    program = gradient_program(chain_loss(remat), params, part)
    leaves = [leaf for leaf in plan.leaves if leaf.role != "optimizer"]
    return count_memory(program, place(program, plan.mesh, leaves), plan, **options)


def test_without_remat_every_layer_keeps_what_its_gradient_needs():
    use = chain(remat=False)
    assert (use.parameters, use.gradients, use.batch) == (WEIGHTS, WEIGHTS, ACTIVATION)
    # Two moments, and a count.
    assert use.optimizer == 2 * WEIGHTS + 4
    # x for the weights' gradient, and the cosine.
    assert use.kept == use.all_kept == 2 * NUM_LAYERS * ACTIVATION
    assert use.moment == "backward"
    assert use.peak == sum(use.by_class.values())
    # Inside a layer: the gradient of its output and of its input, and that of its weights.
    assert use.temporaries <= 4 * ACTIVATION + 4 * WIDTH * WIDTH


def test_with_remat_every_layer_keeps_its_input_alone():
    use = chain(remat=True)
    assert use.kept == use.all_kept == NUM_LAYERS * ACTIVATION


def test_a_split_batch_splits_what_is_kept_and_fsdp_the_rest():
    whole, split = chain(remat=False), chain(remat=False, mesh="data=4")
    assert split.kept == whole.kept // 4
    assert split.parameters == whole.parameters
    split = chain(remat=False, mesh="fsdp=4")
    assert (split.kept, split.parameters, split.gradients) == (
        whole.kept // 4,
        whole.parameters // 4,
        whole.gradients // 4,
    )


def test_microbatches_keep_less_and_add_the_sums_of_gradients():
    whole, halves = chain(remat=False), chain(remat=False, num_microbatches=2)
    assert halves.kept == whole.kept // 2
    assert halves.gradients == 2 * whole.gradients
    assert halves.batch == whole.batch
    assert chain(remat=False, num_microbatches=2, mesh="data=4").kept == whole.kept // 8


def test_not_donated_the_update_needs_parameters_and_state_twice():
    donated, copied = chain(remat=True, mesh="data=128"), chain(remat=True, mesh="data=128", donated=False)
    assert copied.moment == "update"
    assert copied.peak == 2 * (copied.parameters + copied.optimizer) + copied.batch + copied.gradients
    assert donated.peak < copied.peak


def test_tensors_are_the_largest_with_who_made_them():
    use = chain(remat=False)
    sizes = [tensor.num_bytes for tensor in use.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == use.peak
    assert use.tensors[0].kind == "kept"
    assert use.tensors[0].shape == (NUM_LAYERS, BATCH, WIDTH)
    assert use.tensors[0].source.startswith("test_memory.py:")


@pytest.mark.parametrize("mesh", ["tensor=4", "data=2,fsdp=2,tensor=2"])
def test_a_decoder_keeps_its_parts(mesh):
    """With remat, what a layer keeps is the residual stream: whole over `tensor`, and the batch's part of it."""
    plan = steps.plan(mesh)
    use = count_memory(steps.program(True), steps.placement(mesh, True), plan)
    ways = plan.mesh.data * plan.mesh.fsdp
    stream = 4 * steps.CONFIG.num_layers * steps.BATCH * steps.LENGTH * steps.CONFIG.d_model // ways
    layers = [t for t in use.tensors if t.kind == "kept" and t.shape[:1] == (steps.CONFIG.num_layers,)]
    assert sum(t.num_bytes for t in layers) == stream
    assert use.gradients == use.parameters == plan.total_bytes_per_device("parameter")


def test_heads_and_hidden_units_are_split_over_tensor():
    """Without remat most of what is kept has heads or hidden units, so four devices keep far less than half of it."""
    kept = {
        mesh: count_memory(steps.program(False), steps.placement(mesh, False), steps.plan(mesh)).kept
        for mesh in ("data=1", "tensor=4")
    }
    assert kept["data=1"] / 4 < kept["tensor=4"] < kept["data=1"] / 2


def test_a_repeated_number_is_not_held_for_the_loop_that_reads_it():
    def loss(params, batch):
        ones = jnp.broadcast_to(jnp.float32(0.5), (BATCH, 64 * WIDTH))

        def body(x, w):
            return jnp.tanh(x @ w) * jnp.sum(ones * x[:, :1]), None

        return jax.lax.scan(jax.checkpoint(body), batch["x"], params)[0].sum()

    params = jax.ShapeDtypeStruct((NUM_LAYERS, WIDTH, WIDTH), "float32")
    batch = {"x": jax.ShapeDtypeStruct((BATCH, WIDTH), "float32")}
    plan = derive(loss, params, batch, MeshSpec(data=1))
    program = gradient_program(loss, params, batch)
    use = count_memory(program, place(program, plan.mesh, plan.leaves), plan)
    assert max(tensor.num_bytes for tensor in use.tensors) < 64 * ACTIVATION


def test_scores_and_their_loss_take_one_buffer():
    """The sums that a softmax's loss needs are done before its exponentials take the place of the scores."""
    num_classes = 4096

    def loss(params, batch):
        scores = batch["x"] @ params
        of_target = jnp.sum(jnp.where(jnp.arange(num_classes)[None] == batch["y"][:, None], scores, 0.0), axis=-1)
        return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - of_target)

    params = jax.ShapeDtypeStruct((WIDTH, num_classes), "float32")
    batch = {"x": jax.ShapeDtypeStruct((BATCH, WIDTH), "float32"), "y": jax.ShapeDtypeStruct((BATCH,), "int32")}
    plan = derive(loss, params, batch, MeshSpec(data=1))
    program = gradient_program(loss, params, batch)
    use = count_memory(program, place(program, plan.mesh, plan.leaves), plan)
    of_scores = [tensor for tensor in use.tensors if tensor.shape == (BATCH, num_classes)]
    assert sum(tensor.num_bytes for tensor in of_scores) == 4 * BATCH * num_classes


def test_in_a_loop_weights_of_attention_are_held_in_both_widths():
    """Their exponentials are needed once more for their own gradient, their narrow copy for that of the values."""
    length = 256

    def loss(params, batch):
        def body(x, w):
            scores = jnp.einsum("bsd,btd->bst", x, x @ w)
            weights = jax.nn.softmax(scores, axis=-1).astype(jnp.bfloat16)
            return jnp.einsum("bst,btd->bsd", weights, x.astype(jnp.bfloat16)).astype(jnp.float32), None

        return jax.lax.scan(jax.checkpoint(body), batch["x"], params)[0].sum()

    params = jax.ShapeDtypeStruct((NUM_LAYERS, WIDTH, WIDTH), "float32")
    batch = {"x": jax.ShapeDtypeStruct((8, length, WIDTH), "float32")}
    plan = derive(loss, params, batch, MeshSpec(data=1))
    program = gradient_program(loss, params, batch)
    use = count_memory(program, place(program, plan.mesh, plan.leaves), plan)
    held = sorted((t.dtype, t.num_bytes) for t in use.tensors if t.shape == (8, length, length))
    size = 8 * length * length
    assert ("float32", 4 * size) in held
    assert ("bfloat16", 2 * size) in held


def peak_of(loss, params, batch, mesh: MeshSpec) -> MemoryUse:
    plan = derive(loss, params, batch, mesh)
    program = gradient_program(loss, params, batch)
    return count_memory(program, place(program, plan.mesh, plan.leaves), plan)


def test_a_table_stays_gathered_until_its_gradient_is_made():
    """Gathered once for the scores and for the gradient that goes on from them, beside its own whole gradient."""
    num_classes = 64 * WIDTH

    def loss(params, batch):
        return jnp.sum(jnp.sin(jnp.tanh(batch["x"] @ params["w"]) @ params["table"]))

    params = {
        "w": jax.ShapeDtypeStruct((WIDTH, WIDTH), "float32"),
        "table": jax.ShapeDtypeStruct((WIDTH, num_classes), "float32"),
    }
    use = peak_of(loss, params, {"x": jax.ShapeDtypeStruct((8, WIDTH), "float32")}, MeshSpec(fsdp=4))
    above_stored = 4 * WIDTH * num_classes * 3 // 4
    held = {tensor.name: tensor.num_bytes for tensor in use.tensors if tensor.num_bytes == above_stored}
    assert held == {"gathered weights": above_stored, "gradient before it is scattered": above_stored}


def test_a_matmul_that_is_only_read_narrow_is_held_narrow():
    def narrow(x, w):
        return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    def loss(params, batch):
        return jnp.sum(narrow(narrow(batch["x"], params["up"]), params["down"]).astype(jnp.float32) ** 2)

    params = {
        "up": jax.ShapeDtypeStruct((WIDTH, 64 * WIDTH), "bfloat16"),
        "down": jax.ShapeDtypeStruct((64 * WIDTH, WIDTH), "bfloat16"),
    }
    use = peak_of(loss, params, {"x": jax.ShapeDtypeStruct((BATCH, WIDTH), "bfloat16")}, MeshSpec(data=1))
    assert {tensor.dtype for tensor in use.tensors if tensor.shape == (BATCH, 64 * WIDTH)} == {"bfloat16"}
