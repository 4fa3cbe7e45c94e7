"""Frozen parameters: no gradient, no state of an optimizer, the same bits after steps on any mesh; less to count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale import frozen
from jaxscale.cost.device_work import update_hbm_bytes
from jaxscale.cost.estimate import trace_programs
from jaxscale.cost.flops import count_flops, count_model_flops
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.derive import derive
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.state import place_new_state
from jaxscale.train.step import make_step

SCHEDULE = ScheduleConfig(kind="constant", peak_learning_rate=0.1)
D, F, B = 16, 64, 32


def make_params():
    """Some of whose names are before `frozen` in the order of names, and some after."""
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "frozen": {"up": jax.random.normal(keys[0], (D, F), jnp.float32)},
        "bias": jnp.zeros((D,), jnp.float32),
        "up": {"a": jax.random.normal(keys[1], (D, 4), jnp.float32), "b": jnp.zeros((4, F), jnp.float32)},
        "down": jax.random.normal(keys[2], (F, D), jnp.float32),
    }


def loss(params, batch):
    x = batch["x"] + params["bias"][None, :]
    up = x @ params["frozen"]["up"] + (x @ params["up"]["a"]) @ params["up"]["b"]
    return jnp.mean(jnp.square(jnp.tanh(up) @ params["down"] - batch["x"]))


def make_batch():
    return {"x": jnp.asarray(np.random.default_rng(0).normal(size=(B, D)), jnp.float32)}


def test_the_gradient_is_that_of_what_is_trained():
    params, batch = make_params(), make_batch()
    value, gradient = jax.jit(frozen.value_and_grad(loss))(params, batch)
    expected, all_of_it = jax.jit(jax.value_and_grad(loss))(params, batch)
    assert value == expected
    assert frozen.trained(gradient) is gradient
    jax.tree.map(np.testing.assert_array_equal, gradient, frozen.trained(all_of_it))


@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=2,tensor=2"])
def test_steps_leave_it_bit_for_bit_and_keep_no_state_for_it(mesh, grad_accum):
    spec = MeshSpec.parse(mesh)
    devices = make_mesh(spec, jax.devices()[: spec.num_devices])
    identity = TrainingIdentity(
        global_batch_size=B, grad_accum=grad_accum, optimizer=AdamWConfig(schedule=SCHEDULE, weight_decay=0.1)
    )
    optimizer, params, batch = identity.optimizer.transformation(), make_params(), make_batch()
    part = {"x": batch["x"][: B // grad_accum]}
    plan = derive(loss, params, part, spec, optimizer=optimizer)
    assert {leaf.path for leaf in plan.leaves if leaf.role == "parameter"} >= {"frozen/up", "up/a"}
    moments = [leaf for leaf in plan.leaves if leaf.role == "optimizer" and leaf.shape]
    assert len(moments) == 2 * 4
    assert not any("frozen" in leaf.path for leaf in moments)
    shapes = jax.eval_shape(lambda: {"params": make_params(), "opt_state": optimizer.init(frozen.trained(params))})
    counters = {name: jax.ShapeDtypeStruct((), jnp.int32) for name in ("step", "num_skipped", "num_skipped_in_a_row")}
    state = place_new_state(make_params, optimizer, plan.shardings(devices, {**shapes, **counters}), {})
    before = jax.device_get(state["params"])
    step = jax.jit(make_step(lambda p, b, _: (loss(p, b), {}), identity))
    for _ in range(3):
        state, metrics = step(state, batch)
    after = jax.device_get(state["params"])
    np.testing.assert_array_equal(after["frozen"]["up"], before["frozen"]["up"])
    assert all(
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, map(frozen.trained, (after, before))), strict=True)
    )
    assert float(metrics["grad_norm"]) > 0


def test_its_gradient_is_neither_computed_nor_counted():
    params, batch = jax.eval_shape(make_params), jax.eval_shape(make_batch)
    programs = trace_programs(loss, params, batch)
    wide, narrow_in, narrow_out = 2 * B * D * F, 2 * B * D * 4, 2 * B * 4 * F
    # W: forward, and the gradient of x; the factors and the map down: both gradients.
    trained = 3 * (narrow_in + narrow_out + wide) + 2 * wide
    assert count_flops(programs.gradient).total == trained
    assert count_model_flops(programs.forward, programs.num_params, programs.frozen).total == trained
    assert count_model_flops(programs.forward, programs.num_params).total == trained + wide
    assert programs.num_params == len(jax.tree.leaves(params))
    # The update reads and writes what is trained, and reads its gradient; it has no state here.
    plan = derive(loss, params, batch, MeshSpec())
    assert update_hbm_bytes(plan) == 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(frozen.trained(params)))


def test_a_tree_without_is_left_as_it_is():
    for params in ({"w": 1.0}, [1.0, 2.0], 3.0):
        assert frozen.trained(params) is params
        assert frozen.with_frozen(params, params) is params
        assert frozen.positions(params) == ()
