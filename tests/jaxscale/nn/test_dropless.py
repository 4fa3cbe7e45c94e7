"""Experts that read every token that chose them: against a loop over the experts, and against room for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.experts import Experts
from jaxscale.nn.grouped import grouped_contract
from jaxscale.nn.token_exchange import Exchange

B, S, D, F, E = 2, 6, 16, 24, 4
DROPLESS = ExpertsConfig(num_experts=E, num_experts_per_token=2, capacity_factor=None, group_size=None)
SHARES = ("mixed", "one gets all", "one gets none")
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def roomy(config):
    """With a capacity at which nothing is dropped."""
    return dataclasses.replace(config, capacity_factor=E / config.num_experts_per_token, group_size=S)


def module(config, *, gated=True):
    made = Experts(
        config, d_model=D, d_ff=F, activation="silu", gated=gated, stddev=0.3, out_stddev=0.3, key=jax.random.key(0)
    )
    return nnx.split(made)


def tokens(shares):
    """Tokens whose first number leads the router, through a kernel that `skewed` gives it."""
    x = jax.random.normal(jax.random.key(1), (B, S, D), jnp.float32)
    return x if shares == "mixed" else x.at[..., 0].set(8.0)


def skewed(state, shares):
    if shares == "mixed":
        return state
    # Expert 2 is everybody's first choice, or nobody's choice at all.
    kernel = state["router"]["kernel"]
    row = jnp.zeros(E).at[2].set(9.0 if shares == "one gets all" else -9.0)
    kernel.set_value(kernel[...].at[0].set(row))
    return state


def value_and_gradients(config, shares, dtype, *, gated=True):
    graph, state = module(config, gated=gated)

    def loss(state, x):
        made, losses = nnx.merge(graph, state)(x, dtype)
        return jnp.sum(jnp.sin(made)) + losses.load_balance.sum() + losses.z.sum(), made

    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK)
    return jax.device_get(compute(skewed(state, shares), tokens(shares).astype(dtype)))


def plain(state, x, num_chosen, *, gated=True):
    """Every token's experts, one after the other, in float64."""
    p = {name: np.asarray(state[name][...], np.float64) for name in ("up", "down", *(["gate"] if gated else []))}
    rows = np.asarray(x, np.float64).reshape(-1, D)
    scores = rows @ np.asarray(state["router"]["kernel"][...], np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    def silu(x):
        return x / (1 + np.exp(-x))

    out, reads = np.zeros_like(rows), np.zeros(E, int)
    for t, row in enumerate(rows):
        chosen = np.argsort(-probabilities[t])[:num_chosen]
        weights = probabilities[t, chosen] / (probabilities[t, chosen].sum() if num_chosen > 1 else 1.0)
        for e, weight in zip(chosen, weights, strict=True):
            inner = silu(row @ p["gate"][e]) * (row @ p["up"][e]) if gated else silu(row @ p["up"][e])
            out[t] += weight * (inner @ p["down"][e])
            reads[e] += 1
    return out.reshape(np.shape(x)), reads


@pytest.mark.parametrize("num_chosen", [1, 2, E])
@pytest.mark.parametrize("shares", SHARES)
def test_it_is_the_loop_over_each_tokens_experts(shares, num_chosen):
    config = dataclasses.replace(DROPLESS, num_experts_per_token=num_chosen)
    graph, state = module(config)
    expected, reads = plain(skewed(state, shares), tokens(shares), num_chosen)
    if num_chosen < E and shares != "mixed":
        assert reads[2] == (B * S if shares == "one gets all" else 0)
    made, _ = jax.jit(lambda s, x: nnx.merge(graph, s)(x, jnp.float32), compiler_options=QUICK)(state, tokens(shares))
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shares", "dtype", "tolerance"),
    [
        *((shares, jnp.float32, 2e-6) for shares in SHARES),
        ("mixed", jnp.bfloat16, 2e-2),
        *(pytest.param(shares, jnp.bfloat16, 2e-2, marks=pytest.mark.slow) for shares in SHARES[1:]),
    ],
)
def test_values_losses_and_gradients_are_those_of_room_for_all(shares, dtype, tolerance):
    got, expected = (value_and_gradients(config, shares, dtype) for config in (DROPLESS, roomy(DROPLESS)))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(expected)]
    for path, mine, right in zip(paths, jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        mine, right = np.asarray(mine, np.float64), np.asarray(right, np.float64)
        assert np.linalg.norm(mine - right) <= tolerance * np.linalg.norm(right), path


def test_without_a_gate_too():
    (got, _), (expected, _) = (
        value_and_gradients(config, "mixed", jnp.float32, gated=False) for config in (DROPLESS, roomy(DROPLESS))
    )
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5, atol=1e-6)


def test_an_expert_that_reads_nothing_learns_nothing():
    _, (gradient, _) = value_and_gradients(DROPLESS, "one gets none", jnp.float32)
    for name in ("gate", "up", "down"):
        norms = np.linalg.norm(np.asarray(gradient[name][...]).reshape(E, -1), axis=1)
        assert norms[2] == 0
        assert (norms[[0, 1, 3]] > 0).all()


def test_a_grouped_contraction_rounds_its_operands_and_sums_in_float32():
    rng = np.random.default_rng(0)
    rows, kernels, weigh = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 8), (3, 8, 5), (7, 5)))
    sizes = np.array([4, 0, 2], np.int32)  # the last row is of no run

    def loss(rows, kernels):
        made = grouped_contract(rows, kernels, sizes, compute_dtype=jnp.bfloat16)
        return jnp.sum(made[:6] * weigh[:6]), made

    (_, made), (of_rows, of_kernels) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(rows, kernels)
    short = [np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)) for x in (rows, kernels, weigh)]
    runs = [slice(0, 4), slice(4, 4), slice(4, 6)]
    assert (made.dtype, of_rows.dtype, of_kernels.dtype) == (jnp.float32,) * 3
    for e, run in enumerate(runs):
        np.testing.assert_allclose(made[run], short[0][run] @ short[1][e], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_rows[run], short[2][run] @ short[1][e].T, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(of_kernels[e], short[0][run].T @ short[2][run], rtol=1e-5, atol=1e-6)
    assert not np.asarray(of_rows[6:]).any()


def test_a_batch_of_grouped_contractions_is_each_of_them():
    rng = np.random.default_rng(1)
    rows, kernels = rng.normal(size=(2, 7, 8)).astype(np.float32), rng.normal(size=(2, 3, 8, 5)).astype(np.float32)
    sizes = np.array([[4, 0, 3], [1, 1, 5]], np.int32)

    def one(rows, kernels, sizes):
        return grouped_contract(rows, kernels, sizes, compute_dtype=jnp.float32)

    for i, made in enumerate(jax.vmap(one)(rows, kernels, sizes)):
        np.testing.assert_allclose(made, one(rows[i], kernels[i], sizes[i]), rtol=1e-6)


@pytest.mark.parametrize("num_experts_here", [1, 2])
def test_rows_go_to_their_experts_and_come_back(num_experts_here):
    """Every device writes its number and the row's into its rows; the experts' device sees whose they are."""
    num_devices, num_tokens, num_chosen = 4, 5, 2
    num_experts, num_rows = num_devices * num_experts_here, num_tokens * num_chosen
    mesh = make_mesh(MeshSpec(expert=num_devices), jax.devices()[:num_devices])
    rng = np.random.default_rng(2)
    # The tokens of the last device all go to the first one's experts; distinct experts for each token.
    chosen = np.sort(
        [
            np.concatenate(
                [rng.permutation(num_experts if d < 3 else num_chosen)[:num_chosen] for _ in range(num_tokens)]
            )
            for d in range(num_devices)
        ],
        axis=1,
    )
    counts = np.stack([np.bincount(row, minlength=num_experts) for row in chosen]).astype(np.int32)
    rows = np.stack([np.full((num_rows,), d) * 100 + np.arange(num_rows) for d in range(num_devices)])
    rows = np.repeat(rows[..., None], 3, axis=-1).astype(np.float32)

    def there_and_back(rows, counts):
        exchange = Exchange(over=("expert",), num_experts_here=num_experts_here, num_chosen=num_chosen, platform="cpu")
        read, sizes = exchange.to_experts(rows[0], counts[0])
        return read[None], sizes[None], exchange.to_tokens(2 * read, counts[0], num_rows)[None]

    split = jax.P("expert")
    mapped = jax.jit(jax.shard_map(there_and_back, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
    read, sizes, back = mapped(rows, counts)
    assert read.shape[1] == num_devices * num_tokens * min(num_chosen, num_experts_here)
    np.testing.assert_array_equal(sizes, counts.sum(axis=0).reshape(num_devices, num_experts_here))
    np.testing.assert_array_equal(back, 2 * rows)
    for device in range(num_devices):
        mine = range(device * num_experts_here, (device + 1) * num_experts_here)
        expected = [rows[d, i] for e in mine for d in range(num_devices) for i in np.flatnonzero(chosen[d] == e)]
        np.testing.assert_array_equal(read[device][: len(expected)], np.reshape(expected, (-1, 3)))


def test_capacity_and_group_size_are_given_both_or_neither():
    for field, value in (("capacity_factor", 1.25), ("group_size", 8)):
        with pytest.raises(UsageError, match="belong together; None for both makes experts that read all"):
            dataclasses.replace(DROPLESS, **{field: value})
    assert typed_json.decode(ExpertsConfig, typed_json.encode(DROPLESS)) == DROPLESS
