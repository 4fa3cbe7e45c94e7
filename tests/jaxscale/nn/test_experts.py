"""Routing and experts against plain references: who reads what, what is dropped, and the router's losses."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.experts import route
from jaxscale.nn.families import decoder_config
from tests.jaxscale.nn.plain import plain_transformer
from tests.jaxscale.random_params import random_params

ROOMY = ExpertsConfig(num_experts=4, num_experts_per_token=2, capacity_factor=2.0, group_size=4)
CONFIG = decoder_config(
    num_layers=2,
    d_model=24,
    num_heads=4,
    num_kv_heads=2,
    d_ff=16,
    vocab_size=50,
    max_positions=16,
    experts=ROOMY,
    tied_output=False,
)
SWITCH = dataclasses.replace(
    CONFIG,
    gated=False,
    experts=ExpertsConfig(num_experts=3, num_experts_per_token=1, capacity_factor=3.0, group_size=16),
)
TOKENS = jnp.asarray(np.random.default_rng(5).integers(0, 50, (2, 8)), jnp.int32)


def plain_route(logits, num_chosen, capacity):
    """logits: [G E] of one group -> per expert its places' (token, weight), in order."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)[:, :num_chosen]
    places = [[] for _ in range(logits.shape[1])]
    for choice in range(num_chosen):
        for token, experts in enumerate(order):
            kept = probabilities[token, experts].sum() if num_chosen > 1 else 1.0
            places[experts[choice]].append((token, probabilities[token, experts[choice]] / kept))
    return [expert[:capacity] for expert in places]


@pytest.mark.parametrize(("num_chosen", "capacity"), [(1, 2), (2, 3), (3, 6)])
def test_each_expert_reads_who_came_first(num_chosen, capacity):
    logits = np.random.default_rng(0).normal(0, 2, (2, 3, 6, 4))
    got = route(jnp.asarray(logits, jnp.float32), num_chosen=num_chosen, capacity=capacity)
    dropped = 0
    for b in range(2):
        for n in range(3):
            dispatch, combine = np.zeros((6, 4, capacity)), np.zeros((6, 4, capacity))
            expected = plain_route(logits[b, n], num_chosen, capacity)
            dropped += 6 * num_chosen - sum(map(len, expected))
            for expert, places in enumerate(expected):
                for place, (token, weight) in enumerate(places):
                    dispatch[token, expert, place], combine[token, expert, place] = 1, weight
            np.testing.assert_array_equal(got.dispatch[b, n], dispatch)
            np.testing.assert_allclose(got.combine[b, n], combine, rtol=1e-5)
    assert (dropped > 0) == (capacity < 6)


def test_the_losses_of_a_router():
    logits = np.random.default_rng(1).normal(0, 2, (2, 1, 5, 4))
    losses = route(jnp.asarray(logits, jnp.float32), num_chosen=2, capacity=1).losses
    assert losses.load_balance.shape == losses.z.shape == (2,)
    for sequence, rows in enumerate(logits[:, 0]):
        probabilities = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        chosen = np.bincount(np.argsort(-rows, axis=1)[:, :2].ravel(), minlength=4) / 10
        expected = 4 * (chosen * probabilities.mean(axis=0)).sum()
        assert float(losses.load_balance[sequence]) == pytest.approx(expected, rel=1e-5)
        assert float(losses.z[sequence]) == pytest.approx(
            np.mean([math.log(sum(math.exp(score) for score in row)) ** 2 for row in rows]), rel=1e-5
        )


@pytest.mark.parametrize("config", [CONFIG, SWITCH], ids=["two of four, gated", "one of three"])
def test_where_there_is_room_for_all_it_is_the_plain_mixture(config):
    params = random_params(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.num_params
    got = jax.jit(lambda p: functional.apply(config, p, TOKENS, None))(params)
    for row in range(2):
        expected = plain_transformer(config, params, np.asarray(TOKENS[row]))
        np.testing.assert_allclose(got[row], expected, rtol=5e-4, atol=5e-5)


def test_a_full_expert_is_passed_by_and_the_router_learns():
    tight = dataclasses.replace(CONFIG, experts=dataclasses.replace(ROOMY, capacity_factor=0.5))
    params = random_params(CONFIG)

    def loss(params, config):
        hidden, router = functional.apply_with_router(config, params, TOKENS, None, remat=True)
        return jnp.mean(hidden**3), (hidden, router)

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, (roomy, router)), gradient = compute(params, CONFIG)
    (_, (full, _)), _ = compute(params, tight)
    assert bool((roomy != full).any())
    assert router.z.shape == router.load_balance.shape == (len(TOKENS),)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient["layers"]["mlp"]))


def test_unstacked_layers_compute_the_same_losses():
    params = random_params(CONFIG)
    compute = jax.jit(lambda p: functional.apply_with_router(CONFIG, p, TOKENS, None))
    scanned, apart = compute(params), compute(functional.unstack_layers(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), scanned, apart)


def test_a_dense_model_has_no_router():
    dense = dataclasses.replace(CONFIG, experts=None)
    shapes = jax.eval_shape(lambda: functional.init_params(dense, jax.random.key(0)))
    assert jax.eval_shape(lambda p: functional.apply_with_router(dense, p, TOKENS, None), shapes)[1] is None


def test_a_sequence_is_cut_into_whole_groups():
    shapes = jax.eval_shape(lambda: functional.init_params(CONFIG, jax.random.key(0)))
    with pytest.raises(UsageError, match=r"6 tokens must be a multiple of experts\.group_size=4"):
        jax.eval_shape(lambda p: functional.apply(CONFIG, p, TOKENS[:, :6], None), shapes)


@pytest.mark.parametrize(
    ("field", "value"), [("num_experts_per_token", 5), ("capacity_factor", 0.0), ("group_size", 0)]
)
def test_refuses_experts_that_cannot_be(field, value):
    with pytest.raises(UsageError, match=f"{field}={value}"):
        dataclasses.replace(ROOMY, **{field: value})
    with pytest.raises(UsageError, match="experts have no biases"):
        dataclasses.replace(CONFIG, use_bias=True)
