"""Mixtures of experts, found by what the batch is routed to, whichever way; and what only looks like experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn import functional
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import palm_config
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import spec_text
from tests.jaxscale.sharding.transformers import DECODER, abstract, next_token_loss, random_batch

B, S, D, F, E, C = 16, 8, 32, 64, 8, 32
LIMITS = Limits(small_leaf_bytes=0, max_flops_ratio=99)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


PARAMS = {"router": floats(D, E), "up": floats(E, D, F), "bias": floats(E, F), "down": floats(E, F, D)}


def experts(p, slots):
    """[E C D] or [E B C D] through each expert's own MLP."""
    bias = p["bias"].reshape(E, *[1] * (slots.ndim - 2), F)
    hidden = jax.nn.relu(jnp.einsum("e...cd,edf->e...cf", slots, p["up"]) + bias)
    return jnp.einsum("e...cf,efd->e...cd", hidden, p["down"])


def routed(p, tokens):
    """The chosen expert of each token, its weight, and its place among that expert's tokens."""
    probabilities = jax.nn.softmax(tokens @ p["router"])
    weight, expert = (found[..., 0] for found in jax.lax.top_k(probabilities, 1))
    chosen = jax.nn.one_hot(expert, E, dtype=jnp.int32)
    return weight, expert, jnp.sum((jnp.cumsum(chosen, axis=-2) - 1) * chosen, axis=-1)


def by_scatter(p, x):
    tokens = x.reshape(B * S, D)
    weight, expert, place = routed(p, tokens)
    slots = jnp.zeros((E, C, D)).at[expert, place].set(tokens, mode="drop")
    back = experts(p, slots).at[expert, place].get(mode="fill", fill_value=0)
    return x + (back * weight[:, None]).reshape(B, S, D)


def by_gather(p, x):
    """Slots hold the number of the token that is in them; a flat index over experts and slots."""
    tokens = jnp.concatenate([x.reshape(B * S, D), jnp.zeros((1, D))])
    weight, expert, place = routed(p, tokens[:-1])
    index = jnp.where(place < C, expert * C + place, E * C)
    held = jnp.full((E * C,), B * S, jnp.int32).at[index].set(jnp.arange(B * S, dtype=jnp.int32), mode="drop")
    made = experts(p, tokens[held].reshape(E, C, D)).reshape(E * C, D)
    back = made.at[index].get(mode="fill", fill_value=0)
    return x + (back * weight[:, None]).reshape(B, S, D)


def by_one_hot(p, x):
    """Each example has its own slots, S of each expert."""
    weight, expert, place = routed(p, x)
    where = jax.nn.one_hot(expert, E)[..., None] * jax.nn.one_hot(place, S)[:, :, None, :]
    made = experts(p, jnp.einsum("bsec,bsd->ebcd", where, x))
    return x + jnp.einsum("ebcd,bsec,bs->bsd", made, where, weight)


WAYS = {"scatter": by_scatter, "gather": by_gather, "one-hot": by_one_hot}


def planned(function, mesh):
    return derive(function, PARAMS, floats(B, S, D), MeshSpec.parse(mesh), limits=LIMITS)


@pytest.mark.parametrize("way", WAYS)
def test_experts_are_over_expert_and_each_ones_mlp_over_tensor(way):
    plan = planned(WAYS[way], "data=2,expert=2,tensor=2")
    got = {leaf.path: spec_text(leaf.spec) for leaf in plan.leaves}
    assert got == {
        "router": "-, -",
        "up": "expert, -, tensor",
        "bias": "expert, tensor",
        "down": "expert, tensor, -",
        "": "data*expert, -, -",
    }
    assert {leaf.rules[0] for leaf in plan.leaves if leaf.path in ("up", "down", "bias")} == {"experts"}
    # What experts make is theirs first; a matmul that sends it back then finds it with the examples, here in parts.
    theirs = [made for made in plan.activations if made.reason.startswith("each device computes its own experts")]
    sent_back = [made for made in plan.activations if made.reason.endswith("sent back in parts")]
    assert len(sent_back) == (way == "one-hot")
    computed = [made.spec for made in theirs] + [step for made in sent_back for step in made.through]
    assert {spec_text(spec)[:13] for spec in computed} == {"expert, data,"}
    assert len(theirs) + len(sent_back) == 2
    assert [spec_text(step) for made in sent_back for step in (*made.through, made.spec)] == (
        ["expert, data, -, -", "expert, data, -, tensor", "-, data*expert, -, tensor"] if sent_back else []
    )


@pytest.mark.parametrize("way", WAYS)
def test_gradients_under_the_plan_equal_one_devices(way):
    generator = np.random.default_rng(0)
    params = {name: jnp.asarray(generator.normal(0, 0.3, leaf.shape), jnp.float32) for name, leaf in PARAMS.items()}
    x = jnp.asarray(generator.normal(size=(B, S, D)), jnp.float32)
    # Enough slots for every token, or the comparison would be of what is dropped.
    assert np.bincount(np.asarray(routed(params, x.reshape(-1, D))[1]), minlength=E).max() <= C
    gradient = jax.grad(lambda p, x: jnp.sum(jnp.square(WAYS[way](p, x))))
    want = jax.jit(gradient)(params, x)
    spec = MeshSpec(data=2, expert=4)
    plan, mesh = planned(WAYS[way], str(spec)), make_mesh(spec)
    shardings = plan.shardings(mesh, PARAMS)
    program = jax.jit(gradient, in_shardings=(shardings, plan.batch_sharding(mesh)), out_shardings=shardings)
    got = program(jax.device_put(params, shardings), jax.device_put(x, plan.batch_sharding(mesh)))
    for name, leaf in want.items():
        assert np.linalg.norm(got[name] - leaf) <= 1e-5 * np.linalg.norm(leaf)


def test_one_matrix_per_head_is_not_an_expert():
    """Nothing routes the batch along H: every example meets every matrix."""

    def per_head(p, x):
        return jnp.einsum("bhc,hcd->bhd", x.reshape(B, 4, 8), p["w"])

    params = {"w": floats(4, 8, 8), **{name: PARAMS[name] for name in ("router", "up", "bias", "down")}}
    plan = derive(
        lambda p, x: per_head(p, by_scatter(p, x)[:, 0]),
        params,
        floats(B, S, D),
        MeshSpec(data=2, expert=4),
        limits=LIMITS,
    )
    assert {leaf.path: spec_text(leaf.spec) for leaf in plan.leaves}["w"] == "-, -, -"


def test_a_number_of_experts_that_does_not_divide_is_said():
    plan = planned(by_scatter, "expert=16")
    up = next(leaf for leaf in plan.leaves if leaf.path == "up")
    assert up.spec == ((), (), ())
    assert "dim 0 (8) over expert=16: 8 does not divide by 16; sizes that do: 1, 2, 4, 8" in up.rejected


def test_experts_that_gather_the_positions_of_attention_leave_its_grouped_heads_as_they_are():
    """Sent on their way token by token, positions are contracted twice: once with values, once by the experts."""

    def specs(config):
        params = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
        plan = derive(next_token_loss(config), params, abstract(random_batch()), MeshSpec(tensor=8), limits=LIMITS)
        return {leaf.path: spec_text(leaf.spec) for leaf in plan.leaves if "/attention/" in leaf.path}

    experts = ExpertsConfig(num_experts=8, num_experts_per_token=2, capacity_factor=2.0, group_size=6)
    mixture = specs(dataclasses.replace(DECODER, experts=experts))
    # 2 key-value heads of 4 queries each.
    assert mixture["layers/attention/query/kernel"] == "-, -, tensor, -"
    assert mixture == specs(DECODER)


def test_the_one_key_value_head_of_rotary_attention_is_said_to_be_shared():
    config = palm_config(num_layers=2, d_model=32, num_heads=8, head_dim=4, vocab_size=96, max_positions=16)
    params = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    plan = derive(next_token_loss(config), params, abstract(random_batch()), MeshSpec(tensor=8), limits=LIMITS)
    shared = {leaf.path for leaf in plan.leaves if leaf.rules == ("shared head",)}
    assert shared == {"layers/attention/key/kernel", "layers/attention/value/kernel"}
