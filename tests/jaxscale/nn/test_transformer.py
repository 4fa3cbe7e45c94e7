"""The Transformer against a plain, unscanned float32 reference in both layouts, and the properties training needs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn import functional
from jaxscale.nn.config import RopeScaling
from jaxscale.nn.families import bert_config, decoder_config, gpt_config, palm_config
from jaxscale.nn.transformer import Transformer
from jaxscale.sharding.plan import batch_sharded, replicated, row_sharded
from tests.jaxscale.nn.plain import plain_transformer
from tests.jaxscale.random_params import random_params

ENCODER = bert_config(num_layers=3, d_model=24, num_heads=4, d_ff=40, vocab_size=50, max_positions=16)
DECODER = decoder_config(
    num_layers=3,
    d_model=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=40,
    vocab_size=50,
    max_positions=16,
    tied_output=False,
)
MULTI_QUERY = dataclasses.replace(DECODER, num_kv_heads=1, tied_output=True)
SIZES = {"num_layers": 3, "d_model": 24, "num_heads": 4, "vocab_size": 50, "max_positions": 16}
GPT = gpt_config(**SIZES)
PALM = palm_config(head_dim=8, **SIZES)
# Its pairs turn 2.4, 0.24, 0.02 and 0.002 times within the first context: one kept, one between, two stretched.
STRETCHED = dataclasses.replace(
    DECODER,
    rope_scaling=RopeScaling(
        factor=4.0, low_frequency_factor=0.1, high_frequency_factor=0.5, original_max_positions=15
    ),
)
RELATIVE = dataclasses.replace(DECODER, positions="relative", scaled_scores=False)
READS_BOTH_WAYS = dataclasses.replace(RELATIVE, kind="encoder", gated=False, activation="relu")
apply = functools.partial(jax.jit, static_argnums=0, static_argnames=("compute_dtype", "remat"))(functional.apply)
CONFIGS = {
    "encoder": ENCODER,
    "decoder": DECODER,
    "multi_query": MULTI_QUERY,
    "gpt": GPT,
    "palm": PALM,
    "stretched": STRETCHED,
    "relative": RELATIVE,
    "relative both ways": READS_BOTH_WAYS,
}


BOTH_LAYOUTS = pytest.mark.parametrize(
    "config", [pytest.param(ENCODER, id="encoder", marks=pytest.mark.slow), pytest.param(DECODER, id="decoder")]
)


@pytest.fixture(params=list(CONFIGS))
def config(request):
    return CONFIGS[request.param]


def batch(num_rows: int = 2, length: int = 7, seed: int = 0):
    random = np.random.default_rng(seed)
    tokens = jnp.asarray(random.integers(0, 50, (num_rows, length)), jnp.int32)
    lengths = 1 + random.integers(0, length, num_rows)
    lengths[0] = length
    return tokens, jnp.asarray(np.arange(length) < lengths[:, None])


def test_equals_the_plain_reference(config):
    params = random_params(config)
    tokens, mask = batch()
    got = apply(config, params, tokens, mask)
    assert got.dtype == jnp.float32
    for row in range(2):
        length = int(mask[row].sum())
        expected = plain_transformer(config, params, np.asarray(tokens[row, :length]))
        np.testing.assert_allclose(got[row, :length], expected, rtol=2e-4, atol=2e-5)


def test_logits_are_the_output_matrix_or_the_tied_table():
    tokens, mask = batch()
    for config, matrix_of in (
        (DECODER, lambda p: np.asarray(p["output"]["kernel"])),
        (MULTI_QUERY, lambda p: np.asarray(p["embeddings"]["token"]["table"]).T),
    ):
        params = random_params(config)
        hidden = apply(config, params, tokens, mask)
        got = functional.logits(config, params, hidden)
        np.testing.assert_allclose(got, np.asarray(hidden) @ matrix_of(params), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="encoder"):
        functional.logits(ENCODER, random_params(ENCODER), jnp.ones((1, 2, 24)))


@BOTH_LAYOUTS
def test_padding_changes_nothing_at_real_tokens(config):
    params = random_params(config)
    tokens, mask = batch(num_rows=4, length=9, seed=3)
    hidden = apply(config, params, tokens, mask)
    other = jnp.where(mask, tokens, (tokens + 17) % 50)
    assert bool((other != tokens).any())
    again = apply(config, params, other, mask)
    np.testing.assert_array_equal(np.asarray(hidden)[np.asarray(mask)], np.asarray(again)[np.asarray(mask)])


def test_a_decoder_does_not_see_the_future():
    params = random_params(DECODER)
    tokens, _ = batch()
    mask = jnp.ones_like(tokens, bool)
    before = apply(DECODER, params, tokens, mask)
    after = apply(DECODER, params, tokens.at[:, 4:].set(1), mask)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert bool((before[:, 4:] != after[:, 4:]).any())


def test_rotary_positions_are_relative():
    params = random_params(DECODER)
    tokens, mask = batch()
    shifted = jnp.broadcast_to(jnp.arange(7) + 5, tokens.shape)
    here = apply(DECODER, params, tokens, mask)
    there = apply(DECODER, params, tokens, mask, positions=shifted)
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-4)


def loss(config, params, tokens, mask, **options):
    hidden = functional.apply(config, params, tokens, mask, **options)
    return jnp.mean(jnp.where(mask[:, :, None], hidden, 0.0) ** 3)


value_and_gradient = functools.partial(jax.jit, static_argnums=0, static_argnames=("compute_dtype", "remat"))(
    jax.value_and_grad(loss, argnums=1)
)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


@BOTH_LAYOUTS
def test_gradients_are_those_of_finite_differences(config):
    params = random_params(config)
    rows = batch()
    slope = random_params(config, seed=9)
    _, gradient = value_and_gradient(config, params, *rows)
    ends = [
        float(value_and_gradient(config, jax.tree.map(lambda a, b, h=h: a + h * b, params, slope), *rows)[0])
        for h in (-1e-3, 1e-3)
    ]
    assert flat(gradient) @ flat(slope) == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=2e-2)


@BOTH_LAYOUTS
def test_bfloat16_is_near_float32_and_its_gradients_are_float32(config):
    params = jax.tree.map(lambda leaf: leaf * 0.5, random_params(config))
    (_, exact), (_, rounded) = (
        value_and_gradient(config, params, *batch(), compute_dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype(jnp.float32)}
    exact, rounded = flat(exact), flat(rounded)
    assert exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded) > 0.99
    assert (exact != rounded).any()


def test_remat_changes_no_gradient():
    params = random_params(DECODER)
    kept, remade = (value_and_gradient(DECODER, params, *batch(), remat=remat) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), kept, remade)
    program = jax.make_jaxpr(lambda p: functional.apply(DECODER, p, *batch(), remat=True))(params)
    assert "checkpoint" in str(program) or "remat" in str(program)


def test_remat_but_for_matmuls_keeps_their_results_and_no_scores():
    params = random_params(DECODER)
    everything, matmuls = (value_and_gradient(DECODER, params, *batch(), remat=remat) for remat in (True, "matmuls"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), everything, matmuls)

    def num_dots(remat):
        def loss(params):
            return functional.apply(DECODER, params, *batch(), remat=remat).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")

    # The backward pass computes again: nothing; the scores and what they mix; these and the projections of a layer,
    # its last one excepted, which nothing in the layer's own backward pass reads.
    num_projections = 7 if DECODER.gated else 6
    assert num_dots("matmuls") - num_dots(False) == 2
    assert num_dots(True) - num_dots("matmuls") == num_projections - 1


def test_what_is_computed_again_takes_no_memory_between():
    config = dataclasses.replace(DECODER, num_layers=6, max_positions=64)
    params, tokens, mask = random_params(config), jnp.ones((8, 64), jnp.int32), jnp.ones((8, 64), bool)

    def temporary_bytes(remat):
        program = value_and_gradient.lower(config, params, tokens, mask, remat=remat).compile()
        return program.memory_analysis().temp_size_in_bytes

    everything, matmuls, nothing = (temporary_bytes(remat) for remat in (False, "matmuls", True))
    assert nothing < 0.7 * matmuls
    assert matmuls < 0.5 * everything


@BOTH_LAYOUTS
def test_layers_are_scanned_so_the_program_does_not_grow_with_depth(config):
    tokens, mask = batch()

    def num_equations(num_layers):
        deep = dataclasses.replace(config, num_layers=num_layers)
        params = jax.eval_shape(lambda: functional.init_params(deep, jax.random.key(0)))
        return len(jax.make_jaxpr(lambda p: functional.apply(deep, p, tokens, mask))(params).eqns)

    assert num_equations(2) == num_equations(12)


@BOTH_LAYOUTS
def test_unstacked_layers_compute_the_same(config):
    params = random_params(config)
    tokens, mask = batch()
    expected = apply(config, params, tokens, mask)
    got = apply(config, functional.unstack_layers(params), tokens, mask)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_by_key_and_off_without_one():
    config = dataclasses.replace(ENCODER, dropout_rate=0.5)
    params = random_params(config)
    tokens, mask = batch()
    run = lambda key: np.asarray(apply(config, params, tokens, mask, dropout_key=key))  # noqa: E731
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert (run(jax.random.key(1)) != run(jax.random.key(2))).any()
    np.testing.assert_array_equal(run(None), apply(ENCODER, params, tokens, mask))


def test_a_parameter_depends_on_its_name_alone():
    @functools.partial(jax.jit, static_argnums=0)
    def kernel(config):
        return functional.init_params(config, jax.random.key(7))["layers"]["attention"]["query"]["kernel"]

    few, many = kernel(ENCODER), kernel(dataclasses.replace(ENCODER, num_layers=5, use_bias=False))
    np.testing.assert_array_equal(few, many[:3])
    assert bool((few[0] != few[1]).any())
    # A normal distribution cut at two standard deviations keeps 0.88 of its spread.
    assert float(jnp.std(few)) == pytest.approx(0.02 * 0.88, rel=0.1)


def test_vmap_over_models_equals_one_by_one():
    models = [random_params(ENCODER, seed) for seed in range(2)]
    tokens, mask = batch()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    got = jax.vmap(lambda params: apply(ENCODER, params, tokens, mask))(stacked)
    for index, params in enumerate(models):
        np.testing.assert_allclose(got[index], apply(ENCODER, params, tokens, mask), rtol=1e-4, atol=1e-5)


@BOTH_LAYOUTS
def test_sharded_over_a_mesh_equals_one_device(config):
    mesh = make_mesh(MeshSpec.parse("data=2,fsdp=2,tensor=2"))
    params = random_params(config)
    tokens, mask = batch(num_rows=8)

    def sharding(leaf):
        even = leaf.ndim > 1 and leaf.shape[0] % mesh.size == 0
        return row_sharded(mesh) if even else replicated(mesh)

    placed = jax.device_put(params, jax.tree.map(sharding, params))
    rows = jax.device_put((tokens, mask), batch_sharded(mesh))
    got, expected = value_and_gradient(config, placed, *rows), value_and_gradient(config, params, tokens, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, expected)


def test_is_an_nnx_module_of_so_many_parameters(config):
    model = nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0)))
    assert isinstance(model, nnx.Module)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    assert num_params == config.num_params == sum(leaf.size for leaf in jax.tree.leaves(random_params(config)))


def test_without_a_mask_every_token_is_real(config):
    params = random_params(config)
    tokens, _ = batch()
    expected = apply(config, params, tokens, jnp.ones_like(tokens, bool))
    np.testing.assert_allclose(apply(config, params, tokens, None), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_kv_heads", 3),
        ("num_layers", 0),
        ("head_dim", 7),
        ("dropout_rate", 1.0),
        ("max_positions", 0),
        ("positions", "learned"),
        ("norm_placement", "post"),
    ],
)
def test_refuses_a_configuration_that_cannot_be(field, value):
    config = dataclasses.replace(STRETCHED, parallel=True)
    with pytest.raises(UsageError, match=f"{field}={value!r}|norm_placement='pre'"):
        dataclasses.replace(config, **{field: value})


def test_refuses_a_sequence_over_its_limit():
    with pytest.raises(UsageError, match="max_positions=16"):
        apply(ENCODER, random_params(ENCODER), *batch(length=17))


def test_palm_starts_by_fan_in_and_divides_its_logits():
    wide = palm_config(num_layers=2, d_model=64, num_heads=4, head_dim=32, vocab_size=500, max_positions=8)
    params = functional.init_params(wide, jax.random.key(0))
    # Cut at two standard deviations, a normal distribution keeps 0.880 of its spread.
    expected = {
        "token": (params["embeddings"]["token"]["table"], 1.0),
        "query": (params["layers"]["attention"]["query"]["kernel"], 64**-0.5),
        "out": (params["layers"]["attention"]["out"]["kernel"], 128**-0.5),
        "down": (params["layers"]["mlp"]["down"]["kernel"], 256**-0.5),
    }
    for name, (leaf, stddev) in expected.items():
        np.testing.assert_allclose(np.std(leaf), 0.880 * stddev, rtol=0.03, err_msg=name)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 64)), jnp.float32)
    undivided = dataclasses.replace(wide, scaled_logits=False)
    got, whole = (functional.logits(config, params, hidden) for config in (wide, undivided))
    np.testing.assert_allclose(got, np.asarray(whole) / 8, rtol=1e-5, atol=1e-6)
