"""An encoder-decoder's loss against its own scores, and the step that is planned of it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import t5_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.sequence_to_sequence import SequenceToSequenceJob
from jaxscale.train.token_loss import NO_TARGET
from tests.jaxscale.random_params import random_params

JOB = SequenceToSequenceJob(
    transformer=t5_config(num_layers=1, d_model=16, num_heads=2, head_dim=8, d_ff=24, vocab_size=40, max_positions=8),
    source_length=8,
    target_length=5,
    training=TrainingIdentity(
        global_batch_size=4, grad_accum=2, optimizer=AdamWConfig(schedule=ScheduleConfig(peak_learning_rate=1e-3))
    ),
    operation=Operation(),
    z_loss=0.01,
)


def test_the_planned_step_and_its_loss():
    step = JOB.planned_step()
    assert {name: leaf.shape for name, leaf in step.batch.items()} == {
        "sources": (4, 8),
        "tokens": (4, 5),
        "targets": (4, 5),
    }
    assert (step.num_tokens, step.grad_accum) == (52, 2)
    random = np.random.default_rng(0)
    batch = {name: jnp.asarray(random.integers(0, 40, leaf.shape), jnp.int32) for name, leaf in step.batch.items()}
    batch["targets"] = batch["targets"].at[:, 3].set(NO_TARGET)
    params = random_params(JOB.transformer, spread=0.2)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, step.params)
    scores = functional.apply_encoder_decoder(JOB.transformer, params, batch["sources"], batch["tokens"])
    losses = []
    for row, target in zip(np.asarray(scores).reshape(-1, 40), np.ravel(batch["targets"]), strict=True):
        if target != NO_TARGET:
            log_z = math.log(np.exp(row.astype(np.float64)).sum())
            losses.append(log_z - row[target] + 0.01 * log_z**2)
    assert float(jax.jit(step.loss)(params, batch)) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_length": 9}, "source_length=9 must be between 1 and the encoder's max_positions=8"),
        ({"target_length": 0}, "target_length=0 must be between 1 and the decoder's"),
        ({"z_loss": -1.0}, "z_loss=-1.0"),
    ],
)
def test_refuses_a_job_that_cannot_be(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(JOB, **changes)


def test_refuses_experts_whose_losses_it_does_not_have():
    experts = ExpertsConfig(num_experts=2, num_experts_per_token=1, capacity_factor=1.0, group_size=4)
    decoder = dataclasses.replace(JOB.transformer.decoder, experts=experts)
    with pytest.raises(UsageError, match="experts must be None"):
        dataclasses.replace(JOB, transformer=dataclasses.replace(JOB.transformer, decoder=decoder))
