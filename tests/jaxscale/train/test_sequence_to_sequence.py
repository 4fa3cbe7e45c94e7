"""An encoder-decoder's loss against its own scores, and the step that is planned of it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.data.text_data import TextData
from jaxscale.data.token_writer import tokenization, write_dataset
from jaxscale.errors import UsageError
from jaxscale.interop.huggingface import convert, export_model
from jaxscale.mesh import MeshSpec
from jaxscale.nn import functional
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import t5_config
from jaxscale.nn.model_folder import load_model
from jaxscale.nn.text import end_of_text_id
from jaxscale.observe.metrics import read_metrics
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.loop import train
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.sequence_to_sequence import SequenceToSequenceJob
from jaxscale.train.token_loss import NO_TARGET
from tests.jaxscale.data import corpora
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


LENGTH = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("text"), corpora.tokenizer()

    def dataset(name, num_files):
        files = corpora.files(folder / f"{name}-in", num_files)
        return str(write_dataset(folder / name, files, tokenizer, tokenization(tokenizer, pack_lengths=())).path)

    return TextData(datasets=(dataset("train", 2),), held_out=dataset("held-out", 1), rows="concatenated")


def job_of(data, **options):
    sizes = {"num_layers": 1, "d_model": 32, "num_heads": 2, "head_dim": 16, "d_ff": 48}
    schedule = ScheduleConfig(kind="constant", peak_learning_rate=1e-2)
    job = SequenceToSequenceJob(
        transformer=t5_config(**sizes, vocab_size=320, max_positions=LENGTH),
        source_length=LENGTH,
        target_length=6,
        training=TrainingIdentity(num_steps=40, global_batch_size=8, optimizer=AdamWConfig(schedule=schedule)),
        operation=Operation(mesh="data=1@0-0", compile_cache="off"),
        data=data,
        remat=False,
    )
    return dataclasses.replace(job, **options)


def test_batches_are_texts_with_spans_cut_out(text):
    job = job_of(text)
    objective, length = job.objective(), job.spans.row_length(source_length=LENGTH)
    rows = text.mixture(text.open()[:1], length, 0).rows(24, 8)["tokens"]
    batch = objective.batch(3)
    assert {name: leaf.shape for name, leaf in batch.items()} == {
        "sources": (8, LENGTH),
        "tokens": (8, 6),
        "targets": (8, 6),
    }
    num_spans, end = job.spans.num_spans(length), end_of_text_id(objective.tokenizer)
    num_written = job.spans.target_length(length) - 1
    sentinels = list(range(319, 319 - num_spans, -1))
    for row, source, target in zip(rows, batch["sources"].tolist(), batch["targets"].tolist(), strict=True):
        spans = {}
        for token in target[:num_written]:
            if token in sentinels:
                spans[token] = []
            else:
                spans[sentinels[len(spans) - 1]].append(token)
        assert source[-1] == end
        restored = [token for kept in source[:-1] for token in spans.get(kept, [kept])]
        assert restored == row.tolist()
        assert target[num_written:] == [end] + [NO_TARGET] * (6 - num_written - 1)
    np.testing.assert_array_equal(objective.batch(3, slice(2, 5))["targets"], batch["targets"][2:5])
    assert objective.tokens_per_batch(3) == 8 * (LENGTH + 6)


def test_it_trains_resumes_on_another_mesh_and_goes_in_and_out(text, tmp_path):
    job = job_of(text)
    whole = train(job.objective(), job.training, job.operation, tmp_path / "whole")
    short = dataclasses.replace(job.training, num_steps=20)
    part = dataclasses.replace(job, training=short, operation=Operation(mesh="fsdp=4,tensor=2", compile_cache="off"))
    train(part.objective(), part.training, part.operation, tmp_path / "run")
    again = train(job.objective(), job.training, job.operation, tmp_path / "run")
    assert again.step == whole.step == 40
    losses = [[row["loss"] for row in read_metrics(tmp_path / name) if "loss" in row] for name in ("whole", "run")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=0.05)
    assert losses[0][-1] < losses[0][0] - 0.5
    held_out = read_metrics(tmp_path / "whole")[-1]
    assert held_out["dev/perplexity"] == pytest.approx(math.exp(held_out["dev/loss"]), rel=1e-4)
    # Out to transformers' format and in again: the same model, from which another run can begin.
    export_model(whole.model, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "model").params, load_model(whole.model).params)
    follower = job.starting_from(str(whole.model))
    assert follower.objective().starting_params is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_length": 3}, r"target_length=3 must be at least \d, what is cut out of a row of \d+ tokens"),
        ({"data": TextData()}, "data.rows='packed' must be 'concatenated'"),
        ({"operation": Operation(best_metric="bits_per_byte")}, "needs data.held_out"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, text):
    changes = {"data": dataclasses.replace(text, held_out="")} | changes
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(job_of(text), **changes).check(MeshSpec.parse("data=1"))


def test_a_vocabulary_without_room_for_sentinels_is_refused(text):
    tokenizer_size = text.open()[0].vocab_size
    sizes = {"num_layers": 1, "d_model": 32, "num_heads": 2, "head_dim": 16, "d_ff": 48}
    transformer = t5_config(**sizes, vocab_size=tokenizer_size, max_positions=LENGTH)
    with pytest.raises(UsageError, match=r"has 0 beyond the tokenizer's \d+; use a larger vocab_size of both"):
        job_of(text, transformer=transformer).objective()
