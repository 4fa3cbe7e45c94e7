"""Schedules against formulas written out here, AdamW against its paper's algorithm, and the checks of their fields."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def expected_rate(kind, step, peak, final, warmup, decay):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min((step - warmup) / (decay - warmup), 1.0)
    root = math.sqrt(decay / max(step, decay))
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0, "rsqrt": root}[kind]
    return final + (peak - final) * left


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "rsqrt"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedule_is_its_formula(kind, warmup):
    schedule = ScheduleConfig(
        kind=kind, peak_learning_rate=0.3, final_learning_rate=0.01, warmup_steps=warmup, decay_steps=20
    )
    for step in range(30):
        wanted = expected_rate(kind, step, 0.3, 0.01, warmup, 20)
        assert float(schedule.learning_rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-7), step


def test_a_schedule_knows_from_where_it_is_useless():
    assert ScheduleConfig(kind="cosine", decay_steps=7).last_useful_step == 7
    assert ScheduleConfig(kind="linear", decay_steps=7, final_learning_rate=1e-6).last_useful_step is None
    assert ScheduleConfig(kind="constant").last_useful_step is None
    assert ScheduleConfig(kind="rsqrt").last_useful_step is None


def test_the_papers_rate_of_palm():
    schedule = ScheduleConfig(kind="rsqrt", peak_learning_rate=1e-2, decay_steps=10_000)
    rates = [float(schedule.learning_rate(step)) for step in (0, 10_000, 40_000, 255_000)]
    assert rates == pytest.approx([0.01, 0.01, 1 / 200, 1 / math.sqrt(255_000)], rel=1e-6)


def test_adamw_is_the_papers_algorithm():
    config = AdamWConfig(
        schedule=ScheduleConfig(kind="linear", peak_learning_rate=0.1, warmup_steps=2, decay_steps=9),
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        weight_decay=0.1,
    )
    rng = np.random.default_rng(0)
    params, grads = rng.normal(size=6), rng.normal(size=(5, 6))
    transformation = config.transformation()
    ours = {"w": jnp.asarray(params, jnp.float32)}
    state = transformation.init(ours)
    first, second = np.zeros(6), np.zeros(6)
    for step, grad in enumerate(grads):
        updates, state = transformation.update({"w": jnp.asarray(grad, jnp.float32)}, state, ours)
        ours = {"w": ours["w"] + updates["w"]}
        first = 0.8 * first + 0.2 * grad
        second = 0.95 * second + 0.05 * grad**2
        corrected = (first / (1 - 0.8 ** (step + 1))) / (np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-6)
        params = params - expected_rate("linear", step, 0.1, 0.0, 2, 9) * (corrected + 0.1 * params)
    np.testing.assert_allclose(ours["w"], params, rtol=2e-5)


def test_a_first_moment_in_bfloat16_is_the_rounded_one():
    config = AdamWConfig(schedule=ScheduleConfig(kind="constant"), first_moment_dtype="bfloat16")
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, -0.7])}
    exact, rounded = (
        dataclasses.replace(config, first_moment_dtype=dtype).transformation() for dtype in ("float32", "bfloat16")
    )
    (_, exact_state), (_, rounded_state) = (tx.update(grads, tx.init(params), params) for tx in (exact, rounded))
    assert rounded_state[0].mu["w"].dtype == jnp.bfloat16
    assert rounded_state[0].nu["w"].dtype == jnp.float32
    np.testing.assert_array_equal(rounded_state[0].mu["w"], exact_state[0].mu["w"].astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"peak_learning_rate": 0.0}, "peak_learning_rate=0.0"),
        ({"peak_learning_rate": math.nan}, "peak_learning_rate=nan"),
        ({"final_learning_rate": 1.0}, "final_learning_rate=1.0"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_steps": 50, "decay_steps": 50}, "decay_steps=50 must be above warmup_steps=50"),
    ],
)
def test_a_wrong_schedule_is_named(fields, named):
    with pytest.raises(UsageError, match=named):
        ScheduleConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"b1": 1.0}, "b1=1.0"),
        ({"b2": -0.1}, "b2=-0.1"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
    ],
)
def test_a_wrong_optimizer_is_named(fields, named):
    with pytest.raises(UsageError, match=named):
        AdamWConfig(schedule=ScheduleConfig(), **fields)
