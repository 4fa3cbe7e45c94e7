"""The small language models on meshes: what 8 devices compute under the derived plan is what one computes."""

import functools

import jax
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec
from jaxscale.nn import experts, functional
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.train.token_loss import NO_TARGET
from launch.recipes import all_recipes
from tests.configs.on_meshes import MESHES, far_leaves, gradient_on_mesh, on_mesh, on_one_device
from tests.jaxscale.random_params import random_like

TOLERANCE = 1e-5
LIMITS = Limits(small_leaf_bytes=0)
RECIPES = (
    *("llama2_7b", "llama2_70b", "llama3_8b", "llama3_70b", "llama3_405b", "gpt2", "gpt3_175b", "palm_8b"),
    *("palm_540b", "mixtral_8x7b", "mixtral_8x7b_dropless", "t5_large", "bert_base"),
)
# Packed documents add two leaves to the batch, which meet both the queries and the keys of attention.
PACKED_CASES = [
    *[("llama3_70b", mesh) for mesh in MESHES],
    *[("palm_8b", "tensor=4"), ("gpt2", "data=2,fsdp=2,tensor=2"), ("llama3_8b", "fsdp=2,sequence=4")],
]
# Those that take the least time stand for all where only the fast tests run.
FAST = {
    ("llama3_70b", "tensor=4"),
    ("llama3_70b", "data=2,fsdp=2,tensor=2"),
    ("mixtral_8x7b_dropless", "data=2,fsdp=2,tensor=2"),
    ("mixtral_8x7b_dropless", "fsdp=2,expert=2,tensor=2"),
}
# With an expert axis too: dropless experts exchange rows, on emulated devices by gathering them.
EXPERT_CASES = [
    ("mixtral_8x7b", "expert=4,tensor=2"),
    ("mixtral_8x7b_dropless", "expert=8"),
    ("mixtral_8x7b_dropless", "fsdp=2,expert=2,tensor=2"),
    ("mixtral_8x7b_dropless", "fsdp=2,expert=2,sequence=2"),
]
CASES = [(name, mesh) for name in RECIPES for mesh in MESHES] + EXPERT_CASES


def case(name, mesh):
    return pytest.param(name, mesh, id=f"{name}-{mesh}", marks=[] if (name, mesh) in FAST else [pytest.mark.slow])


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


def packed(batch):
    """The same tokens as documents of 7 tokens, then of what is left, then two of padding."""
    number, shape = np.arange(16), batch["tokens"].shape
    segments = np.where(number < 7, 1, np.where(number < 14, 2, 0))
    positions = np.where(number < 14, number % 7, 0)
    targets = np.where(segments == 0, NO_TARGET, batch["targets"])
    leaves = {"segments": segments, "positions": positions, "targets": targets}
    return batch | {name: np.broadcast_to(leaf, shape).astype(np.int32) for name, leaf in leaves.items()}


def arguments(step):
    return random_like(step.params, spread=0.2), random_batch(step.batch)


@functools.cache
def expected_of(name):
    step = small(name).planned_step()
    return on_one_device(jax.value_and_grad(step.loss), *arguments(step))


def routing_of(job):
    """A number that tells which place of which expert every token takes; see `numbered`."""

    def routing(params, batch):
        _, losses = functional.apply_with_router(job.transformer, params, batch["tokens"], None)
        return losses.load_balance.sum()

    return routing


def numbered(dispatch):
    """The sum of a number for every place of every expert that a token takes: whole and below 2^24, so exact."""
    numbers = np.random.default_rng(3).integers(0, 8192, dispatch.shape).astype(np.float32)
    return (dispatch * numbers).sum(axis=(1, 2, 3, 4))


def check_routing(job, mesh, monkeypatch):
    real = experts.route

    def showing(logits, **options):
        made = real(logits, **options)
        return made._replace(losses=made.losses._replace(load_balance=numbered(made.dispatch)))

    monkeypatch.setattr(experts, "route", showing)
    params, batch = arguments(job.planned_step())
    routing = routing_of(job)
    # The output layer takes no part.
    plan = derive(routing, params, batch, mesh, limits=LIMITS)
    expected = on_one_device(routing, params, batch)
    got = on_mesh(routing, params, batch, mesh, plan=plan)
    monkeypatch.undo()
    # 16 x 16 tokens, of which some find no place, twice 4096 on average.
    assert 1_000_000 < expected < 2_200_000
    assert got == expected


@pytest.mark.parametrize(("name", "mesh"), [case(*pair) for pair in CASES])
def test_loss_and_gradients_equal_one_devices(name, mesh, monkeypatch):
    job, spec = small(name), MeshSpec.parse(mesh)
    if name == "mixtral_8x7b":
        check_routing(job, spec, monkeypatch)
    step = job.planned_step()
    params, batch = arguments(step)
    plan = derive(step.loss, params, batch, spec, optimizer=step.optimizer, limits=LIMITS)
    expected_loss, expected = expected_of(name)
    loss, gradient = gradient_on_mesh(step.loss, params, batch, spec, plan=plan)
    assert abs(loss - expected_loss) <= TOLERANCE * abs(expected_loss)
    assert far_leaves(gradient, expected, tolerance=TOLERANCE) == {}


@pytest.mark.parametrize(("name", "mesh"), [case(*pair) for pair in PACKED_CASES])
def test_packed_documents_equal_one_devices(name, mesh):
    step = small(name).planned_step()
    params, batch = arguments(step)
    batch, spec = packed(batch), MeshSpec.parse(mesh)
    plan = derive(step.loss, params, batch, spec, optimizer=step.optimizer, limits=LIMITS)
    expected_loss, expected = on_one_device(jax.value_and_grad(step.loss), params, batch)
    loss, gradient = gradient_on_mesh(step.loss, params, batch, spec, plan=plan)
    assert abs(loss - expected_loss) <= TOLERANCE * abs(expected_loss)
    assert far_leaves(gradient, expected, tolerance=TOLERANCE) == {}
