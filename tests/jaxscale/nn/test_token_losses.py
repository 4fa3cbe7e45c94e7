"""The loss in chunks against the loss of whole scores, written out: values, gradients, memory, and on meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.token_losses import chunked_token_loss
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from tests.configs.on_meshes import far_leaves, gradient_on_mesh, on_one_device

NUM_EXAMPLES, LENGTH, WIDTH, VOCABULARY = 8, 12, 16, 64
Z_LOSS = 0.01


def drawn(vocabulary_dim=0):
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    targets = draw.integers(0, VOCABULARY, (NUM_EXAMPLES, LENGTH), dtype=np.int32)
    params = {
        "table": weights if vocabulary_dim == 0 else weights.T.copy(),
        "in": draw.normal(scale=0.3, size=(1, 1, WIDTH)).astype(np.float32),
    }
    batch = {
        "x": draw.normal(size=(NUM_EXAMPLES, LENGTH, WIDTH)).astype(np.float32),
        "targets": np.where(draw.random(targets.shape) < 0.2, -1, targets),
    }
    return params, batch


def whole_loss(params, batch, vocabulary_dim=0):
    table = params["table"] if vocabulary_dim == 0 else params["table"].T
    scores = jnp.einsum("bsd,vd->bsv", batch["x"] * params["in"], table, precision="highest")
    log_z = jnp.log(jnp.sum(jnp.exp(scores), axis=-1))
    target = jnp.take_along_axis(scores, jnp.maximum(batch["targets"], 0)[..., None], axis=-1)[..., 0]
    losses = jnp.where(batch["targets"] >= 0, log_z - target + Z_LOSS * log_z**2, 0)
    return losses.sum() / np.sum(batch["targets"] >= 0, dtype=np.float32)


def loss_in_chunks(params, batch, *, chunk_tokens=32, vocabulary_dim=0):
    options = {"z_loss": Z_LOSS, "chunk_tokens": chunk_tokens, "vocabulary_dim": vocabulary_dim}
    return chunked_token_loss(batch["x"] * params["in"], params["table"], batch["targets"], **options)[0]


@pytest.mark.parametrize("vocabulary_dim", [0, 1])
@pytest.mark.parametrize("chunk_tokens", [1, 32, 10**6])
def test_loss_and_gradient_are_those_of_whole_scores(chunk_tokens, vocabulary_dim):
    params, batch = drawn(vocabulary_dim=vocabulary_dim)
    ours = functools.partial(loss_in_chunks, chunk_tokens=chunk_tokens, vocabulary_dim=vocabulary_dim)
    got, gradient = jax.jit(jax.value_and_grad(ours))(params, batch)
    wanted, expected = jax.value_and_grad(functools.partial(whole_loss, vocabulary_dim=vocabulary_dim))(params, batch)
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)
    assert far_leaves(gradient, expected, tolerance=1e-5) == {}


@pytest.mark.parametrize("vocabulary_dim", [0, 1])
@pytest.mark.parametrize("chunk_tokens", [32, 10**6])
def test_bfloat16_compiles_and_rounds_the_gradient(chunk_tokens, vocabulary_dim):
    params, batch = drawn(vocabulary_dim=vocabulary_dim)

    def ours(params, batch):
        options = {"z_loss": Z_LOSS, "chunk_tokens": chunk_tokens, "vocabulary_dim": vocabulary_dim}
        hidden = batch["x"] * params["in"]
        return chunked_token_loss(hidden, params["table"], batch["targets"], compute_dtype=jnp.bfloat16, **options)[0]

    got, gradient = jax.jit(jax.value_and_grad(ours))(params, batch)
    wanted, expected = jax.value_and_grad(functools.partial(whole_loss, vocabulary_dim=vocabulary_dim))(params, batch)
    assert float(got) == pytest.approx(float(wanted), rel=2e-2)
    assert far_leaves(gradient, expected, tolerance=2e-2) == {}


def test_metrics_are_the_parts_of_the_loss():
    params, batch = drawn()
    hidden = batch["x"] * params["in"]
    loss, metrics = chunked_token_loss(
        hidden, params["table"], batch["targets"], vocabulary_dim=0, chunk_tokens=32, z_loss=Z_LOSS
    )
    predicted = batch["targets"] >= 0
    log_z = np.log(np.exp(hidden.astype(np.float64) @ params["table"].T.astype(np.float64)).sum(-1))[predicted]
    assert float(metrics["log_z"]) == pytest.approx(log_z.mean(), rel=1e-5)
    assert float(loss - metrics["cross_entropy"]) == pytest.approx(Z_LOSS * (log_z**2).mean(), rel=1e-4)


def test_nothing_to_predict_is_no_loss():
    params, batch = drawn()
    nothing = batch | {"targets": np.full_like(batch["targets"], -1)}
    loss, gradient = jax.value_and_grad(loss_in_chunks)(params, nothing)
    assert float(loss) == 0.0
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


def test_whole_scores_are_never_in_memory():
    shapes = (jax.ShapeDtypeStruct((4, 128, 8), jnp.float32), jax.ShapeDtypeStruct((4096, 8), jnp.float32))
    targets = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def temporary_bytes(chunk_tokens):
        def loss(hidden, table, targets):
            return chunked_token_loss(hidden, table, targets, vocabulary_dim=0, chunk_tokens=chunk_tokens)[0]

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole_bytes = 4 * 128 * 4096 * 4
    assert temporary_bytes(4 * 128) >= whole_bytes
    # Four arrays of the scores of a chunk, and some more of the size of the weights.
    assert temporary_bytes(32) < 4 * whole_bytes / 16 + 4 * 4096 * 8 * 4


@pytest.mark.parametrize("mesh", ["tensor=8", "fsdp=4,tensor=2", "data=2,sequence=2,tensor=2"])
def test_on_a_mesh_the_vocabulary_is_in_parts_and_the_loss_is_right(mesh):
    params, batch = drawn()
    spec = MeshSpec.parse(mesh)
    plan = derive(loss_in_chunks, params, batch, spec, limits=Limits(small_leaf_bytes=0))
    (of_table,) = [leaf for leaf in plan.leaves if leaf.path == "table"]
    assert "tensor" in str(of_table.spec[0])
    expected_loss, expected = on_one_device(jax.value_and_grad(loss_in_chunks), params, batch)
    loss, gradient = gradient_on_mesh(loss_in_chunks, params, batch, spec, plan=plan)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
    assert far_leaves(gradient, expected, tolerance=1e-5) == {}


def test_no_chunk_is_named():
    params, batch = drawn()
    with pytest.raises(UsageError, match="chunk_tokens=0"):
        loss_in_chunks(params, batch, chunk_tokens=0)
