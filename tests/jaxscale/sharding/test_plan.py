"""A plan applied to a real model on 8 devices: the same loss, gradients and updates as on one."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.plan import ShardingPlan
from tests.jaxscale.sharding import transformers as t

# Halves the time to compile; what is compared is the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SPLIT_ALL = Limits(small_leaf_bytes=0)
OPTIMIZERS = {"encoder": optax.sgd(0.1), "decoder": optax.adamw(1e-3)}
ALWAYS = [("encoder", "data=2,fsdp=2,tensor=2"), ("decoder", "tensor=8")]
ALSO = [
    (model, mesh)
    for model in ("encoder", "decoder")
    for mesh in (
        "data=2,fsdp=2,tensor=2",
        "tensor=8",
        "fsdp=4,tensor=2",
        "slice=2,data=2,fsdp=2",
        "fsdp=2,expert=2,sequence=2",
    )
    if (model, mesh) not in ALWAYS
]


@functools.cache
def model_of(kind):
    if kind == "encoder":
        return t.init(t.ENCODER), t.contrastive_loss(t.ENCODER)
    return t.init(t.DECODER), t.next_token_loss(t.DECODER)


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def model():
    return model_of("encoder")


def gradient_step(loss, optimizer):
    def step(state, batch):
        value, gradients = jax.value_and_grad(loss)(state["params"], batch)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, value, gradients

    return step


@functools.cache
def reference_of(kind):
    """The step on one device."""
    params, loss = model_of(kind)
    optimizer = OPTIMIZERS[kind]
    state = {"params": params, "opt_state": optimizer.init(params)}
    return state, jax.jit(gradient_step(loss, optimizer), compiler_options=QUICK)(state, t.random_batch())


@pytest.mark.parametrize(("kind", "text"), [*ALWAYS, *(pytest.param(*c, marks=pytest.mark.slow) for c in ALSO)])
def test_a_step_under_the_plan_equals_one_device(kind, text):
    (params, loss), (state, (new_state, value, gradients)) = model_of(kind), reference_of(kind)
    spec, optimizer, batch = MeshSpec.parse(text), OPTIMIZERS[kind], t.random_batch()
    plan = derive(loss, t.abstract(params), t.abstract(batch), spec, optimizer=optimizer, limits=SPLIT_ALL)
    mesh = make_mesh(spec)
    shardings = plan.shardings(mesh, t.abstract(state))
    batch_shardings = plan.shardings(mesh, batch)
    placed, split_batch = jax.device_put(state, shardings), jax.device_put(batch, batch_shardings)
    step = jax.jit(
        gradient_step(loss, optimizer),
        in_shardings=(shardings, batch_shardings),
        out_shardings=(shardings, None, shardings["params"]),
        compiler_options=QUICK,
    )
    got_state, got_value, got_gradients = step(placed, split_batch)
    np.testing.assert_allclose(got_value, value, rtol=1e-5)
    # The gradient of a key's bias is zero but for rounding: a shift of all keys changes no softmax.
    floor = 0.01 * float(optax.tree.norm(gradients))
    for got, want in zip(jax.tree.leaves(got_gradients), jax.tree.leaves(gradients), strict=True):
        error = np.linalg.norm(np.asarray(got) - np.asarray(want))
        assert error <= 1e-5 * max(np.linalg.norm(want), floor)
    # Adam divides by the gradient's size, so where that is tiny a rounding error is not.
    for got, want in zip(jax.tree.leaves(got_state), jax.tree.leaves(new_state), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=2e-5, rtol=1e-4)


def test_bytes_per_device_are_those_that_the_devices_hold(model):
    params, loss = model
    spec = MeshSpec.parse("data=2,fsdp=2,tensor=2")
    plan = derive(loss, t.abstract(params), t.abstract(t.random_batch()), spec)
    mesh = make_mesh(spec)
    placed = jax.device_put(params, plan.shardings(mesh, params))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert plan.total_bytes_per_device("parameter") == held
    assert held < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_shardings_keep_the_structure_and_leave_unplanned_scalars_whole(model):
    params, loss = model
    spec = MeshSpec.parse("fsdp=8")
    plan = derive(loss, params, t.random_batch(), spec, optimizer=optax.adamw(1e-3), limits=SPLIT_ALL)
    state = {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": np.zeros((), np.int32)}
    shardings = plan.shardings(make_mesh(spec), state)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    assert shardings["step"].is_fully_replicated
    assert shardings["params"] == plan.shardings(make_mesh(spec), params)
    assert shardings["opt_state"][0].mu == shardings["params"]
    assert all(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(shardings))


def test_a_tree_that_was_not_planned_is_refused(model):
    params, loss = model
    plan = derive(loss, params, t.random_batch(), MeshSpec(data=8))
    with pytest.raises(UsageError, match=r"extra of shape \(3,\) is not in the sharding plan"):
        plan.shardings(make_mesh(MeshSpec(data=8)), {**params, "extra": np.zeros(3)})
    with pytest.raises(UsageError, match="the plan is for mesh data=8, got mesh fsdp=8"):
        plan.shardings(make_mesh(MeshSpec(fsdp=8)), params)
    with pytest.raises(UsageError, match="the plan is for mesh data=8"):
        plan.batch_sharding(make_mesh(MeshSpec(fsdp=8)))


def test_a_plan_survives_json(model):
    params, loss = model
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    plan = derive(loss, params, t.random_batch(), MeshSpec(fsdp=2, tensor=4), optimizer=optimizer)
    assert ShardingPlan.from_json(plan.to_json()) == plan
