"""Adafactor against its algorithm in NumPy, against optax where both agree, and its state on derived plans."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.train.adafactor import AdafactorConfig
from jaxscale.train.optimizer import ScheduleConfig

SCHEDULE = ScheduleConfig(kind="rsqrt", peak_learning_rate=0.1, decay_steps=3)
NUM_UPDATES = 5


def drawn(*, seed):
    draw = np.random.default_rng(seed)
    shapes = {"table": (6, 4), "scale": (4,), "layers": {"up": (3, 4, 8)}}
    sizes = {"layers": {"up": np.array([0.01, 1.0, 5.0]).reshape(3, 1, 1)}}
    made = jax.tree.map(lambda shape: draw.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple))
    return made | {"layers": {"up": made["layers"]["up"] * sizes["layers"]["up"]}}


def float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def updated(transformation, params, gradients):
    state = transformation.init(params)
    for grads in gradients:
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def rms(x):
    return np.sqrt(np.mean(x**2))


def by_hand(p, gradients, b1):
    """Of one parameter, in float64."""
    v, m = np.zeros_like(p), np.zeros_like(p)
    for k, g in enumerate(gradients, start=1):
        rate = 0.1 if k - 1 <= 3 else 0.1 * np.sqrt(3 / (k - 1))
        b2 = 1 - k**-0.8
        v = b2 * v + (1 - b2) * g**2
        u = g / np.sqrt(v)
        u = u / max(1, rms(u) / 0.9)
        m = b1 * m + (1 - b1) * rate * max(rms(p), 1e-3) * u
        p = p - m - rate**2 * p
    return p


def test_it_is_the_papers_algorithm_layer_by_layer():
    config = AdafactorConfig(schedule=SCHEDULE, max_update_rms=0.9)
    params, gradients = drawn(seed=0), [drawn(seed=seed) for seed in range(1, 1 + NUM_UPDATES)]
    got = updated(config.transformation(), float32(params), [float32(g) for g in gradients])
    for name in ("table", "scale"):
        wanted = by_hand(params[name], [g[name] for g in gradients], 0.9)
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4, atol=1e-6)
    for layer in range(3):
        wanted = by_hand(params["layers"]["up"][layer], [g["layers"]["up"][layer] for g in gradients], 0.9)
        np.testing.assert_allclose(got["layers"]["up"][layer], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("b1", [None, 0.9])
def test_without_decay_and_stacks_it_is_optaxs(factored, b1):
    config = AdafactorConfig(schedule=SCHEDULE, b1=b1, weight_decay=False, factored=factored, min_factored_size=4)
    params, *gradients = (
        float32({"table": tree["table"], "scale": tree["scale"]}) for tree in (drawn(seed=s) for s in range(5))
    )
    theirs = optax.adafactor(
        SCHEDULE.learning_rate, factored=factored, momentum=b1, min_dim_size_to_factor=4, weight_decay_rate=None
    )
    with jax.numpy_dtype_promotion("standard"):
        wanted = updated(theirs, params, gradients)
    got = updated(config.transformation(), params, gradients)
    for name in params:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("factored", [False, True])
def test_its_state_follows_the_parameters_on_a_plan(factored):
    config = AdafactorConfig(schedule=SCHEDULE, factored=factored, min_factored_size=8)
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in {"a": (16, 64), "b": (64, 16)}.items()}
    batch = {"x": jax.ShapeDtypeStruct((8, 16), jnp.float32)}

    def loss(params, batch):
        return jnp.sum(jnp.square(jax.nn.relu(batch["x"] @ params["a"]) @ params["b"]))

    plan = derive(
        loss,
        params,
        batch,
        MeshSpec.parse("fsdp=4,tensor=2"),
        optimizer=config.transformation(),
        limits=Limits(small_leaf_bytes=0),
    )
    of = {leaf.path: leaf.spec for leaf in plan.leaves}
    followers = ["momentum/", "second_moment/v/"] if not factored else ["momentum/"]
    for name in ("a", "b"):
        for follower in followers:
            assert [spec for path, spec in of.items() if path.endswith(follower + name)] == [of[name]], of


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"b1": 1.0}, "b1=1.0"),
        ({"decay_exponent": 0.0}, "decay_exponent=0.0"),
        ({"min_scale": 0.0}, "min_scale=0.0"),
        ({"min_factored_size": 0}, "min_factored_size=0"),
        ({"max_update_rms": 0.0}, "max_update_rms=0.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(UsageError, match=named):
        dataclasses.replace(AdafactorConfig(schedule=SCHEDULE), **fields)
