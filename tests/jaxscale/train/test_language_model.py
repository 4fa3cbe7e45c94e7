"""The language models' losses against plain references, and the step that is planned of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.token_loss import NO_TARGET, token_loss
from tests.jaxscale.random_params import random_params

DECODER = decoder_config(
    num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=24, vocab_size=40, max_positions=8, tied_output=False
)
ENCODER = bert_config(num_layers=2, d_model=16, num_heads=4, d_ff=24, vocab_size=40, max_positions=8, dropout_rate=0.0)


def job_of(transformer, **options):
    training = TrainingIdentity(
        global_batch_size=4, optimizer=AdamWConfig(schedule=ScheduleConfig(peak_learning_rate=1e-3))
    )
    return LanguageModelJob(
        transformer=transformer, sequence_length=8, training=training, operation=Operation(), **options
    )


def random_batch(seed=0):
    random = np.random.default_rng(seed)
    targets = random.integers(0, 40, (4, 8))
    targets[random.random((4, 8)) < 0.3] = NO_TARGET
    tokens = random.integers(0, 40, (4, 8))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "targets": jnp.asarray(targets, jnp.int32)}


def plain_token_loss(logits, targets, z_loss):
    losses = []
    for row, wanted in zip(logits.reshape(-1, logits.shape[-1]), targets.ravel(), strict=True):
        if wanted != NO_TARGET:
            log_z = math.log(sum(math.exp(score) for score in row))
            losses.append(log_z - row[wanted] + z_loss * log_z**2)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_token_loss_is_the_mean_over_predicted_tokens(z_loss):
    logits = np.random.default_rng(1).normal(0, 2, (4, 8, 40))
    targets = np.asarray(random_batch()["targets"])
    got = token_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(targets), z_loss=z_loss)
    assert got.dtype == jnp.float32
    assert float(got) == pytest.approx(plain_token_loss(logits, targets, z_loss), rel=1e-5)


def test_no_prediction_is_no_loss():
    assert float(token_loss(jnp.ones((1, 2, 5)), jnp.full((1, 2), NO_TARGET))) == 0.0


@pytest.mark.parametrize("transformer", [DECODER, ENCODER], ids=["next token", "masked tokens"])
def test_the_loss_is_that_of_the_model_s_own_scores(transformer):
    job, batch = job_of(transformer, z_loss=0.01), random_batch()
    params = random_params(transformer)
    mask = jnp.ones((4, 8), bool)
    hidden = np.asarray(jax.jit(lambda p: functional.apply(transformer, p, batch["tokens"], mask))(params))
    table = params["output"]["kernel"] if transformer is DECODER else params["embeddings"]["token"]["table"].T
    expected = plain_token_loss(hidden @ np.asarray(table), np.asarray(batch["targets"]), 0.01)
    assert float(jax.jit(job.planned_step().loss)(params, batch)) == pytest.approx(expected, rel=1e-4)


def test_the_routers_losses_are_added_by_their_weights():
    experts = ExpertsConfig(num_experts=4, num_experts_per_token=2, capacity_factor=1.0, group_size=8)
    mixture, batch = dataclasses.replace(DECODER, experts=experts), random_batch()
    params = random_params(mixture)
    plain, weighted = (
        job_of(mixture, load_balance_loss=balance, router_z_loss=z) for balance, z in ((0.0, 0.0), (0.5, 0.25))
    )
    _, router = jax.jit(lambda p: functional.apply_with_router(mixture, p, batch["tokens"], None))(params)
    added = float(
        jax.jit(weighted.planned_step().loss)(params, batch) - jax.jit(plain.planned_step().loss)(params, batch)
    )
    # Each sequence by its predicted tokens.
    counts = (np.asarray(batch["targets"]) >= 0).sum(axis=1)
    of_each = 0.5 * np.asarray(router.load_balance) + 0.25 * np.asarray(router.z)
    assert added == pytest.approx((of_each * counts).sum() / counts.sum(), rel=1e-3)


def test_the_planned_step_has_the_shapes_of_the_model_and_reads_nothing():
    step = job_of(DECODER).planned_step()
    assert step.params["layers"]["attention"]["key"]["kernel"].shape == (2, 16, 2, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(step.params)) == DECODER.num_params
    assert {leaf.dtype for leaf in jax.tree.leaves(step.params)} == {jnp.dtype(jnp.float32)}
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in step.batch.items()} == dict.fromkeys(
        ("tokens", "targets"), ((4, 8), jnp.int32)
    )
    assert step.num_tokens == 32
    out = jax.eval_shape(step.gradient, step.params, step.batch)
    assert out[0].shape == ()
    assert jax.tree.structure(out[1]) == jax.tree.structure(step.params)


def test_microbatches_are_those_of_the_training():
    job = job_of(DECODER)
    job = dataclasses.replace(job, training=dataclasses.replace(job.training, grad_accum=2))
    assert job.planned_step().grad_accum == 2


@pytest.mark.parametrize("remat", [True, False])
def test_layers_are_computed_again_where_asked(remat):
    step = job_of(DECODER, remat=remat).planned_step()
    program = str(jax.make_jaxpr(step.loss)(step.params, step.batch))
    assert ("checkpoint" in program or "remat" in program) == remat


def test_dropout_is_in_the_planned_loss_where_the_model_has_it():
    for rate in (0.0, 0.5):
        step = job_of(dataclasses.replace(ENCODER, dropout_rate=rate)).planned_step()
        program = str(jax.make_jaxpr(step.loss)(step.params, step.batch))
        assert ("random_bits" in program or "threefry" in program) == bool(rate)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sequence_length", 9, "max_positions=8"),
        ("sequence_length", 0, "between 1"),
        ("z_loss", -1.0, "z_loss"),
        ("router_z_loss", 0.1, "which the transformer has none of"),
    ],
)
def test_refuses_a_job_that_cannot_be(field, value, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(job_of(DECODER), **{field: value})
