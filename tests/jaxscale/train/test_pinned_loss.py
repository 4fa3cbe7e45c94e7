"""A decoder trained with the plan's activations pinned: its losses are one device's, whatever is split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn import functional
from jaxscale.nn.families import decoder_config
from jaxscale.observe.compiles import CompileCounter
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.planned_step import derive_step
from jaxscale.train.randomness import named_key
from tests.jaxscale.train import runs

# A vocabulary that is not too small to be split.
BATCH_SIZE, VOCABULARY = 8, 1024
# Two buckets: the plan is derived from the first.
LENGTHS = (8, 8, 4)
SPLIT_MESHES = ["data=2,fsdp=2,tensor=2", "fsdp=2,sequence=2,tensor=2", "fsdp=2,tensor=4"]
JOB = LanguageModelJob(
    transformer=decoder_config(
        num_layers=2,
        d_model=16,
        num_heads=4,
        # On tensor=4 each is shared by two devices: the axis is in parts.
        num_kv_heads=2,
        d_ff=24,
        vocab_size=VOCABULARY,
        max_positions=8,
        tied_output=False,
    ),
    sequence_length=8,
    training=TrainingIdentity(
        num_steps=len(LENGTHS),
        global_batch_size=BATCH_SIZE,
        compute_dtype="float32",
        optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant", peak_learning_rate=0.01)),
    ),
    operation=Operation(),
)


@dataclasses.dataclass(frozen=True)
class RandomTokens:
    """The decoder on made-up tokens, all of them predicted, so that microbatches weigh the same."""

    lengths: tuple[int, ...] = LENGTHS

    def init_params(self, key):
        return functional.init_params(JOB.transformer, key)

    def loss(self, params, batch, key):
        return JOB.loss(params, batch, key), {"mean_token": jnp.mean(batch["tokens"].astype(jnp.float32))}

    def batch_shapes(self):
        return [
            {name: jax.ShapeDtypeStruct((BATCH_SIZE, length), np.int32) for name in ("tokens", "targets")}
            for length in dict.fromkeys(self.lengths)
        ]

    def batch(self, number, rows=slice(None)):
        dims = (BATCH_SIZE, self.lengths[number])
        rng = np.random.default_rng(number)
        return {name: rng.integers(0, VOCABULARY, dims, dtype=np.int32)[rows] for name in ("tokens", "targets")}


def training(**changes):
    return dataclasses.replace(JOB.training, **changes)


@pytest.fixture(scope="module")
def alone():
    return runs.losses(RandomTokens(), training(), "data=1", len(LENGTHS))


@pytest.mark.parametrize(
    ("mesh", "grad_accum"),
    [
        ("data=2,fsdp=2,tensor=2", 1),
        pytest.param("fsdp=2,sequence=2,tensor=2", 1, marks=pytest.mark.slow),
        pytest.param("fsdp=2,sequence=2,tensor=2", 2, marks=pytest.mark.slow),
        pytest.param("fsdp=2,tensor=4", 1, marks=pytest.mark.slow),
    ],
)
def test_losses_on_a_mesh_are_those_of_one_device(mesh, grad_accum, alone):
    made = runs.losses(RandomTokens(), training(grad_accum=grad_accum), mesh, len(LENGTHS))
    assert len(set(alone)) == len(LENGTHS)
    np.testing.assert_allclose(made, alone, rtol=1e-5)


def program(mesh, length, grad_accum=1):
    """The pinned loss of one microbatch, as text, and the plain one."""
    objective, identity = RandomTokens((8, length)), training(grad_accum=grad_accum)
    placement = runs.placed(objective, identity, mesh)
    batch = {name: leaf[: BATCH_SIZE // grad_accum] for name, leaf in objective.batch(1).items()}
    arguments = placement.state["params"], batch, named_key(0, "loss")
    pinned, plain = (jax.make_jaxpr(f)(*arguments) for f in (placement.loss, objective.loss))
    return placement, str(pinned), str(plain)


@pytest.mark.parametrize("mesh", SPLIT_MESHES)
@pytest.mark.parametrize(("length", "grad_accum"), [(8, 1), (4, 1), (8, 2)])
def test_every_activation_of_the_plan_is_pinned_in_the_program_at_hand(mesh, length, grad_accum):
    placement, pinned, plain = program(mesh, length, grad_accum)
    assert placement.plan.activations
    # A result may be led through other specs before its own.
    num_pins = sum(1 + len(activation.through) for activation in placement.plan.activations)
    assert pinned.count("sharding_constraint") == num_pins
    assert "sharding_constraint" not in plain


@pytest.mark.parametrize("mesh", SPLIT_MESHES)
def test_what_is_explained_is_where_training_has_its_arrays(mesh):
    identity = training(grad_accum=2)
    explained = derive_step(dataclasses.replace(JOB, training=identity).planned_step(), MeshSpec.parse(mesh))
    trained = runs.placed(RandomTokens(), identity, mesh).plan
    assert explained.leaves == tuple(leaf for leaf in trained.leaves if leaf.path != "(key)")


def test_on_one_device_the_program_is_the_objectives():
    _, pinned, plain = program("data=1", 8)
    assert pinned == plain


def test_positions_are_split_over_sequence_and_examples_over_the_batchs_axes():
    objective = RandomTokens()
    placement = runs.placed(objective, training(grad_accum=2), "fsdp=2,sequence=2,tensor=2")
    tokens = placement.put_batch(objective.batch(0))["tokens"]
    assert tokens.shape == (8, 8)
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(4, 4)}
    np.testing.assert_array_equal(tokens, objective.batch(0)["tokens"])


def test_a_bucket_that_does_not_divide_is_refused_before_anything_compiles():
    refused = r"a microbatch of targets \[4 7\] int32, .*: batch \w+ \(4, 7\): dim 1 \(7\) is split over sequence=2"
    with CompileCounter() as counter, pytest.raises(UsageError, match=refused):
        runs.placed(RandomTokens((8, 7)), training(grad_accum=2), "fsdp=2,sequence=2,tensor=2")
    assert counter.num_programs == 0


def test_a_batch_of_shapes_that_were_not_named_is_refused():
    placement = runs.placed(RandomTokens((8,)), training(), "data=1")
    with pytest.raises(UsageError, match=r"tokens \[8 4\] int32 is not among .* \[8 8\]"):
        placement.put_batch(RandomTokens((4,)).batch(0))
