"""The small language models on meshes: what 8 devices compute under the derived plan is what one computes."""

import functools

import jax
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn import experts, functional
from jaxscale.sharding.constrain import constrain
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.train.language_model import NO_TARGET
from launch.recipes import all_recipes
from tests.jaxscale.random_params import random_like

TOLERANCE = 1e-5
# Gradients that are zero but for rounding, as that of the keys' bias under a softmax, have no norm to compare with.
ROUNDING = 1e-8
RECIPES = (
    *("llama2_7b", "llama2_70b", "llama3_8b", "llama3_70b", "llama3_405b", "gpt2", "gpt3_175b", "palm_8b"),
    *("palm_540b", "mixtral_8x7b", "t5_large", "bert_base"),
)
MESHES = ("tensor=2", "tensor=4", "tensor=8", "fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")
CASES = [(name, mesh) for name in RECIPES for mesh in MESHES] + [("mixtral_8x7b", "expert=4,tensor=2")]
# Less work for the compiler: XLA partitions the same program, only the code made of it is slower.
COMPILED_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Work that is repeated on purpose weighs more where all else is small. Of experts every device of `tensor` sends the
# tokens on their way for itself.
REPEATED = {
    ("mixtral_8x7b", "tensor=4"): 1.2,
    ("mixtral_8x7b", "tensor=8"): 1.4,
}


@functools.cache
def small(name):
    return all_recipes()[name]().shrunk()


def random_batch(shapes):
    """Tokens; a fifth of the targets are not to be predicted."""
    draw = np.random.default_rng(2)

    def array(name, shape):
        tokens = draw.integers(0, 128, shape.shape, dtype=np.int32)
        return np.where(draw.random(shape.shape) < 0.2, NO_TARGET, tokens) if name == "targets" else tokens

    return {name: array(name, shape) for name, shape in shapes.items()}


def arguments(step):
    return random_like(step.params, spread=0.2), random_batch(step.batch)


def on_mesh(function, params, batch, mesh, *, plan, gradient):
    """What the function, or its value and gradient, is with both arguments placed, and its activations pinned."""
    devices = make_mesh(mesh, devices=jax.devices()[: mesh.num_devices])
    pinned = constrain(function, plan.activation_shardings(devices), params, batch)
    placed = [jax.device_put(tree, plan.shardings(devices, tree)) for tree in (params, batch)]
    out = (None, plan.shardings(devices, params)) if gradient else None
    computed = jax.value_and_grad(pinned) if gradient else pinned
    return jax.device_get(jax.jit(computed, out_shardings=out, compiler_options=COMPILED_FAST)(*placed))


@functools.cache
def on_one_device(name):
    step = small(name).planned_step()
    return jax.device_get(jax.jit(jax.value_and_grad(step.loss), compiler_options=COMPILED_FAST)(*arguments(step)))


def routing_of(job):
    """A number that tells which place of which expert every token takes; see `numbered`."""

    def routing(params, batch):
        _, losses = functional.apply_with_router(job.transformer, params, batch["tokens"], None)
        return losses.load_balance

    return routing


def numbered(dispatch):
    """The sum of a number for every place of every expert that a token takes: whole and below 2^24, so exact."""
    numbers = np.random.default_rng(3).integers(0, 8192, dispatch.shape).astype(np.float32)
    return (dispatch * numbers).sum()


def check_routing(job, mesh, limits, monkeypatch):
    real = experts.route

    def showing(logits, **options):
        made = real(logits, **options)
        return made._replace(losses=made.losses._replace(load_balance=numbered(made.dispatch)))

    monkeypatch.setattr(experts, "route", showing)
    params, batch = arguments(job.planned_step())
    routing = routing_of(job)
    # The output layer takes no part.
    plan = derive(routing, params, batch, mesh, limits=limits)
    expected = jax.device_get(jax.jit(routing, compiler_options=COMPILED_FAST)(params, batch))
    got = on_mesh(routing, params, batch, mesh, plan=plan, gradient=False)
    monkeypatch.undo()
    # 16 x 16 tokens, of which some find no place, twice 4096 on average.
    assert 1_000_000 < expected < 2_200_000
    assert got == expected


def check(name, mesh_text, monkeypatch):
    job, mesh = small(name), MeshSpec.parse(mesh_text)
    limits = Limits(small_leaf_bytes=0, max_flops_ratio=REPEATED.get((name, mesh_text), 1.05))
    if name == "mixtral_8x7b":
        check_routing(job, mesh, limits, monkeypatch)
    step = job.planned_step()
    params, batch = arguments(step)
    plan = derive(step.loss, params, batch, mesh, optimizer=step.optimizer, limits=limits)
    expected_loss, expected = on_one_device(name)
    loss, gradient = on_mesh(step.loss, params, batch, mesh, plan=plan, gradient=True)
    assert abs(loss - expected_loss) <= TOLERANCE * abs(expected_loss)
    whole = np.sqrt(sum(np.linalg.norm(leaf) ** 2 for leaf in jax.tree.leaves(expected)))
    theirs = jax.tree_util.tree_leaves_with_path(expected)
    errors = {
        jax.tree_util.keystr(path): np.linalg.norm(mine - leaf) / (np.linalg.norm(leaf) + ROUNDING / TOLERANCE * whole)
        for (path, leaf), mine in zip(theirs, jax.tree.leaves(gradient), strict=True)
    }
    assert {path: error for path, error in errors.items() if not error <= TOLERANCE} == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [pytest.param(*case, id="-".join(case)) for case in CASES])
def test_loss_and_gradients_equal_one_devices(name, mesh, monkeypatch):
    check(name, mesh, monkeypatch)
