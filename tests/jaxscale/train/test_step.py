"""The step against a plain one written here: accumulation, clipping, skipping, and any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.train.placement import place
from jaxscale.train.randomness import named_key, step_key
from jaxscale.train.state import new_state, place_new_state
from jaxscale.train.step import accumulated_gradient, make_step
from tests.jaxscale.train import tiny


def plain_loss(params, batch, key):
    """A mean over examples that uses no key, so that accumulation must give the big batch's gradient."""
    del key
    hidden = jnp.tanh(batch["x"] @ params["w"])
    return jnp.mean(jnp.square(hidden.sum(-1) - batch["y"])), {"mean_x": jnp.mean(batch["x"])}


def plain_case():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)}
    batch = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in (("x", (16, 4)), ("y", (16,)))}
    return params, batch


@pytest.mark.parametrize("grad_accum", [2, 8])
def test_accumulation_is_the_big_batch(grad_accum):
    params, batch = plain_case()
    key = named_key(0, "loss")
    (loss, extra), grads = jax.value_and_grad(plain_loss, has_aux=True)(params, batch, key)
    (our_loss, our_extra), our_grads = accumulated_gradient(plain_loss, grad_accum, params, batch, key)
    np.testing.assert_allclose(our_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(our_extra["mean_x"], extra["mean_x"], rtol=1e-5)
    np.testing.assert_allclose(our_grads["w"], grads["w"], rtol=1e-5, atol=1e-6)


def test_every_microbatch_has_its_own_key_and_examples():
    def loss(params, batch, key):
        return jnp.sum(batch["y"]) * jax.random.uniform(key) + 0 * params["w"].sum(), {}

    params, batch = plain_case()
    key = named_key(0, "loss")
    (ours, _), _ = accumulated_gradient(loss, 4, params, batch, key)
    parts = [batch["y"][i::4].sum() * jax.random.uniform(jax.random.fold_in(key, i)) for i in range(4)]
    np.testing.assert_allclose(ours, sum(parts) / 4, rtol=1e-5)


def run_steps(job, mesh, num_steps):
    """The state and the metrics after each step."""
    objective = job.objective()
    placement = place(objective, job.training, mesh)
    key = named_key(job.training.seed, "params")
    state = place_new_state(
        lambda: objective.init_params(key),
        job.training.optimizer.transformation(),
        placement.state_shardings,
        placement.layouts,
    )
    step = jax.jit(make_step(placement.loss, job.training), out_shardings=(placement.state_shardings, None))
    states, rows = [], []
    for number in range(num_steps):
        state, metrics = step(state, placement.put_batch(objective.batch(number)))
        states.append(jax.device_get(state))
        rows.append(jax.device_get(metrics))
    return states, rows


def reference_steps(job, num_steps):
    """The same in plain jax and optax, on one device, without accumulation."""
    objective, identity = job.objective(), job.training
    adamw = identity.optimizer
    optimizer = optax.chain(
        optax.clip_by_global_norm(adamw.max_grad_norm),
        optax.adamw(adamw.schedule.learning_rate, b1=adamw.b1, b2=adamw.b2, eps=adamw.eps, weight_decay=0.0),
    )

    @jax.jit
    def one(params, state, batch, number):
        key = step_key(identity.seed, "loss", number)
        (loss, _), grads = jax.value_and_grad(objective.loss, has_aux=True)(params, batch, key)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.jit(objective.init_params)(named_key(identity.seed, "params"))
    state, losses = jax.jit(optimizer.init)(params), []
    for number in range(num_steps):
        params, state, loss = one(params, state, objective.batch(number), number)
        losses.append(float(loss))
    return jax.device_get(params), losses


@pytest.mark.parametrize("mesh", ["data=1", "fsdp=4,tensor=2"])
def test_a_few_steps_are_the_plain_ones_on_any_mesh(mesh):
    job = tiny.job()
    spec = MeshSpec.parse(mesh)
    states, rows = run_steps(job, make_mesh(spec, jax.devices()[: spec.num_devices]), 3)
    params, losses = reference_steps(job, 3)
    np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), states[-1]["params"], params)
    assert states[-1]["step"] == 3
    assert max(row["grad_norm"] for row in rows) > job.training.optimizer.max_grad_norm


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    job = tiny.job(faults=tiny.Faults(nan_from_step=2, nan_until_step=4))
    states, rows = run_steps(job, make_mesh(MeshSpec(), jax.devices()[:1]), 5)
    good, bad, after = states[1], states[3], states[4]
    jax.tree.map(np.testing.assert_array_equal, (bad["params"], bad["opt_state"]), (good["params"], good["opt_state"]))
    assert (bad["step"], bad["num_skipped"], bad["num_skipped_in_a_row"]) == (4, 2, 2)
    assert [bool(np.isnan(row["loss"])) for row in rows] == [False, False, True, True, False]
    assert (after["num_skipped"], after["num_skipped_in_a_row"]) == (2, 0)
    assert not np.array_equal(after["params"]["out"]["w"], bad["params"]["out"]["w"])


def test_the_state_before_the_first_step():
    job = tiny.job()
    params = job.objective().init_params(named_key(0, "params"))
    state = new_state(params, job.training.optimizer.transformation())
    assert {name: int(state[name]) for name in ("step", "num_skipped", "num_skipped_in_a_row")} == {
        "step": 0,
        "num_skipped": 0,
        "num_skipped_in_a_row": 0,
    }
