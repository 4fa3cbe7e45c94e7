"""A language model's objective: its batches, its held-out text, its export, and a run that stops and goes on."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn import functional
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.nn.model_folder import load_model
from jaxscale.train.batch_sizes import BatchSizes
from jaxscale.train.corruption import Corrupted
from jaxscale.train.held_out import HeldOutText
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.loop import train
from jaxscale.train.masking import Masking, MaskingConfig
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.token_loss import NO_TARGET
from jaxscale.train.token_objective import LEAVES, TokenObjective
from jaxscale.train.token_prediction import TokenPrediction
from tests.jaxscale.random_params import random_params
from tests.jaxscale.train.token_rows import LENGTH, VOCAB_SIZE, CountingRows

DECODER = decoder_config(
    num_layers=1, d_model=16, num_heads=4, num_kv_heads=2, d_ff=24, vocab_size=VOCAB_SIZE, max_positions=LENGTH
)
ENCODER = bert_config(num_layers=1, d_model=16, num_heads=4, d_ff=24, vocab_size=VOCAB_SIZE, max_positions=LENGTH)
MASK_ID = 39
BYTES_PER_TOKEN = 2.5


def objective_of(transformer, **options):
    tokenizer = Tokenizer.train_wordpiece(["sea wind ship sail star"] * 3, VOCAB_SIZE)
    prediction = TokenPrediction(
        transformer=transformer,
        z_loss=0.1,
        load_balance_loss=0.0,
        router_z_loss=0.0,
        remat=False,
        compute_dtype="float32",
    )
    training = TrainingIdentity(global_batch_size=8, optimizer=AdamWConfig(schedule=ScheduleConfig()))
    masking = (
        Masking(config=MaskingConfig(), mask_id=MASK_ID, vocab_size=VOCAB_SIZE, seed=5)
        if transformer.kind == "encoder"
        else None
    )
    held_out = CountingRows() if masking is None else Corrupted(source=CountingRows(), corruption=masking)
    return TokenObjective(
        computation=prediction,
        data=CountingRows(),
        lengths=dict.fromkeys(LEAVES, LENGTH),
        sizes=BatchSizes(stages=((0, 8),)),
        corruption=masking,
        held_out=HeldOutText(source=held_out, num_sequences=5, bytes_per_token=BYTES_PER_TOKEN),
        tokenizer=tokenizer,
        starting_params=None,
        identity={"training": {"seed": training.seed, "num_steps": 1}},
        provenance={"source": "a test"},
        **options,
    )


def mean_loss(config, params, batch):
    """The mean loss of the predicted tokens, from the model's scores, in float64."""
    inputs = {name: jnp.asarray(batch[name]) for name in ("segments", "positions")}
    hidden = jax.jit(lambda: functional.apply(config, params, jnp.asarray(batch["tokens"]), None, **inputs))()
    scores = np.asarray(functional.logits(config, params, hidden), np.float64)
    losses = [
        np.log(np.exp(scores[place]).sum()) - scores[place][target]
        for place, target in np.ndenumerate(batch["targets"])
        if target != NO_TARGET
    ]
    return float(np.mean(losses))


def test_a_process_gets_its_rows_of_the_one_batch():
    objective = objective_of(DECODER)
    whole = objective.batch(3)
    assert objective.sample_ids(3).tolist() == list(range(24, 32))
    np.testing.assert_array_equal(whole["tokens"], CountingRows().rows(24, 8)["tokens"])
    for rows in (slice(0, 4), slice(4, 8), slice(6, 7)):
        part = objective.batch(3, rows)
        assert {name: leaf.tolist() for name, leaf in part.items()} == {
            name: leaf[rows].tolist() for name, leaf in whole.items()
        }
    (shapes,) = objective.batch_shapes()
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in whole.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()
    }


def test_growing_batches_read_every_sample_once():
    objective = dataclasses.replace(objective_of(DECODER), sizes=BatchSizes(stages=((0, 4), (2, 8))))
    batches = [objective.batch(number)["tokens"] for number in range(4)]
    assert [len(batch) for batch in batches] == [4, 4, 8, 8]
    np.testing.assert_array_equal(np.concatenate(batches), CountingRows().rows(0, 24)["tokens"])
    assert [shapes["tokens"].shape[0] for shapes in objective.batch_shapes()] == [4, 8]


def test_a_process_masks_its_rows_as_any_other_would():
    objective = objective_of(ENCODER)
    whole, plain = objective.batch(2), CountingRows().rows(16, 8)
    part = objective.batch(2, slice(3, 6))
    np.testing.assert_array_equal(part["tokens"], whole["tokens"][3:6])
    np.testing.assert_array_equal(part["targets"], whole["targets"][3:6])
    predicted = whole["targets"] != NO_TARGET
    assert predicted.any()
    np.testing.assert_array_equal(whole["targets"][predicted], plain["tokens"][predicted])
    np.testing.assert_array_equal(whole["tokens"][~predicted], plain["tokens"][~predicted])
    assert not predicted[plain["segments"] == 0].any()


@pytest.mark.parametrize("mesh", ["data=1", "fsdp=4,tensor=2"])
def test_held_out_text_is_evaluated_over_all_its_tokens_on_any_mesh(mesh):
    objective, params = objective_of(DECODER), random_params(DECODER)
    spec = MeshSpec.parse(mesh)
    got = objective.evaluate(params, make_mesh(spec, devices=jax.devices()[: spec.num_devices]))
    expected = mean_loss(DECODER, params, CountingRows().rows(0, 5))
    assert got["loss"] == pytest.approx(expected, rel=1e-5)
    assert got["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert got["bits_per_byte"] == pytest.approx(expected / math.log(2) / BYTES_PER_TOKEN, rel=1e-5)


def test_held_out_text_of_an_encoder_is_masked_as_its_batches_are():
    objective, params = objective_of(ENCODER), random_params(ENCODER)
    rows = objective.corruption.applied(CountingRows().rows(0, 5), np.arange(5))
    assert (rows["targets"] == NO_TARGET).any()
    batch = {name: jnp.asarray(leaf) for name, leaf in rows.items()}
    expected, _ = objective.computation.without_regularization().loss(params, batch, jax.random.key(0))
    got = objective.evaluate(params, make_mesh(MeshSpec.parse("data=1"), devices=jax.devices()[:1]))
    assert got["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_an_exported_model_gives_the_same_loss(tmp_path):
    objective, params = objective_of(DECODER), random_params(DECODER)
    objective.export(jax.tree.map(np.asarray, params), tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert (model.config, model.provenance) == (DECODER, {"source": "a test"})
    assert model.tokenizer.fingerprint == objective.tokenizer.fingerprint
    again = dataclasses.replace(objective, computation=dataclasses.replace(objective.computation, z_loss=0.0))
    mesh = make_mesh(MeshSpec.parse("data=1"), devices=jax.devices()[:1])
    assert again.evaluate(model.params, mesh) == objective.evaluate(params, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=1@0-0", "fsdp=4,tensor=2"])
def test_a_run_that_stopped_ends_as_one_that_did_not(tmp_path, mesh):
    schedule = ScheduleConfig(kind="constant", peak_learning_rate=1e-2)
    operation = Operation(mesh=mesh, compile_cache="off", eval_every_steps=2)

    def run(folder, num_steps):
        training = TrainingIdentity(
            num_steps=num_steps, global_batch_size=8, optimizer=AdamWConfig(schedule=schedule), seed=3
        )
        objective = dataclasses.replace(
            objective_of(DECODER), identity={"training": {"seed": 3, "num_steps": num_steps}}
        )
        return train(objective, training, operation, tmp_path / folder)

    unbroken = run("unbroken", 4)
    assert run("stopped", 2).state_hash != unbroken.state_hash
    assert run("stopped", 4).state_hash == unbroken.state_hash
    held_out, computation = objective_of(DECODER).held_out, objective_of(DECODER).computation
    one = make_mesh(MeshSpec.parse("data=1"), devices=jax.devices()[:1])
    fresh = functional.init_params(DECODER, jax.random.key(0))
    trained = load_model(tmp_path / "stopped" / "model").params
    before, after = (held_out.evaluate(computation, params, one)["loss"] for params in (fresh, trained))
    assert after < before
