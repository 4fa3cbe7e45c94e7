"""A language model's job with its text: batches, identity, what it starts from, and what does not fit it."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxscale.data.text_data import TextData
from jaxscale.data.token_writer import tokenization, write_dataset
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.observe.metrics import read_metrics
from jaxscale.train.adafactor import AdafactorConfig
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.loop import train
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from tests.jaxscale.data import corpora

LENGTH = 16
VOCAB_SIZE = 300


def dataset(folder, name, num_files=2, tokenizer=None):
    tokenizer = tokenizer or corpora.tokenizer()
    files = corpora.files(folder / f"{name}-in", num_files)
    return str(write_dataset(folder / name, files, tokenizer, tokenization(tokenizer, pack_lengths=(LENGTH,))).path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return TextData(datasets=(dataset(folder, "train"),), held_out=dataset(folder, "held-out", 1))


def job_of(data, **options):
    sizes = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_ff": 32, "max_positions": LENGTH}
    transformer = decoder_config(**sizes, num_kv_heads=1, vocab_size=VOCAB_SIZE)
    schedule = ScheduleConfig(kind="constant", peak_learning_rate=1e-2)
    training = TrainingIdentity(num_steps=30, global_batch_size=8, optimizer=AdamWConfig(schedule=schedule))
    job = LanguageModelJob(
        transformer=transformer,
        sequence_length=LENGTH,
        training=training,
        operation=Operation(mesh="data=1@0-0", compile_cache="off"),
        data=data,
        remat=False,
    )
    return dataclasses.replace(job, **options)


def test_batches_are_rows_of_the_mixture(text):
    job = job_of(text)
    objective = job.objective()
    mixture = text.mixture(text.open()[:1], LENGTH, job.training.seed)
    batch = objective.batch(3)
    assert set(batch) == {"tokens", "targets", "segments", "positions"}
    for name, leaf in batch.items():
        np.testing.assert_array_equal(leaf, mixture.rows(24, 8)[name])
    assert objective.batch_shapes()[0] == job.planned_step().batch
    assert objective.tokens_per_batch(0) == 8 * LENGTH
    plain = dataclasses.replace(job, data=dataclasses.replace(text, rows="concatenated"))
    assert set(plain.objective().batch(0)) == set(plain.planned_step().batch) == {"tokens", "targets"}


def test_the_identity_is_of_what_the_text_says_not_where_it_is(text, tmp_path):
    identity = job_of(text).objective().identity
    moved = shutil.copytree(text.datasets[0], tmp_path / "moved")
    assert job_of(dataclasses.replace(text, datasets=(str(moved),))).objective().identity == identity
    assert job_of(text, remat=True).objective().identity == identity
    for other in (
        dataclasses.replace(text, rows="concatenated"),
        dataclasses.replace(text, datasets=(dataset(tmp_path, "more", 3),)),
        dataclasses.replace(text, held_out=""),
    ):
        assert job_of(other).objective().identity != identity


@pytest.mark.slow
def test_it_learns_and_another_run_starts_from_what_it_learned(text, tmp_path):
    job = job_of(text)
    objective = job.objective()
    train(objective, job.training, job.operation, tmp_path / "run")
    again = job_of(text).starting_from(str(tmp_path / "run" / "model"))
    assert again.transformer == job.transformer
    started = again.objective()
    assert started.identity["initial_model"] != objective.identity["initial_model"] == ""
    mesh = make_mesh(MeshSpec(data=1), devices=jax.devices()[:1])
    first = started.evaluate(started.starting_params, mesh)
    fresh = objective.evaluate(objective.init_params(jax.random.key(0)), mesh)
    assert first["loss"] < fresh["loss"] - 1
    assert first["bits_per_byte"] < fresh["bits_per_byte"]
    larger = dataclasses.replace(again.transformer, num_layers=2)
    with pytest.raises(UsageError, match=r"is another model than the job's:\n  num_layers: 1 -> 2"):
        dataclasses.replace(again, transformer=larger).objective()
    other = Tokenizer.train_bpe(["words of another kind"] * 3, 280)
    there = dataclasses.replace(text, datasets=(dataset(tmp_path, "other", 1, other),), held_out="")
    with pytest.raises(UsageError, match="reads tokens of another tokenizer"):
        dataclasses.replace(again, data=there).objective()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": TextData()}, UsageError, r"data.datasets is not given; add `--data.datasets DIR`"),
        ({"data": TextData(datasets=("absent",))}, DataError, "there is no committed directory"),
        ({"sequence_length": 8}, UsageError, r"has no packs for sequence_length=8 \(it has: 16\)"),
        (
            {"transformer": decoder_config(
                num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, d_ff=32, vocab_size=64, max_positions=LENGTH
            )},
            UsageError,
            r"its tokenizer has \d+ tokens, the model's vocab_size is 64",
        ),
        (
            {"transformer": bert_config(
                num_layers=1, d_model=16, num_heads=2, d_ff=32, vocab_size=VOCAB_SIZE, max_positions=LENGTH
            )},
            UsageError,
            r"the datasets' tokenizer has no \[MASK\]",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(text, change, error, message):
    with pytest.raises(error, match=message):
        job_of(**({"data": text} | change)).objective()


def test_the_same_dataset_twice_and_metrics_without_text_are_refused(text, tmp_path):
    copy = shutil.copytree(text.datasets[0], tmp_path / "copy")
    with pytest.raises(UsageError, match="are the same dataset"):
        job_of(dataclasses.replace(text, held_out=str(copy))).objective()
    mesh = MeshSpec(data=1)
    asks = Operation(best_metric="loss", best_mode="min")
    job_of(text, operation=asks).check(mesh)
    with pytest.raises(UsageError, match=r"best_metric='loss' needs data.held_out"):
        job_of(dataclasses.replace(text, held_out=""), operation=asks).check(mesh)
    with pytest.raises(UsageError, match=r"best_metric='mrr' must be one of loss, perplexity, bits_per_byte"):
        job_of(text, operation=Operation(best_metric="mrr")).check(mesh)


RAMP = ((0, 4), (6, 8))


def test_batches_grow_where_the_ramp_says_and_no_sample_is_left_out(text):
    job = job_of(text)
    ramped = dataclasses.replace(job, training=dataclasses.replace(job.training, batch_ramp=RAMP)).objective()
    even = job.objective()
    assert [len(ramped.sample_ids(number)) for number in range(8)] == [4] * 6 + [8] * 2
    tokens = [np.concatenate([o.batch(n)["tokens"] for n in range(number)]) for o, number in [(ramped, 8), (even, 5)]]
    np.testing.assert_array_equal(*tokens)


def test_a_run_killed_where_its_batches_grow_ends_with_the_same_bits(text, tmp_path):
    """Adafactor, on a mesh; each part of the run ends with the step before, at, or after the first large batch."""
    job = job_of(text)
    optimizer = AdafactorConfig(schedule=ScheduleConfig(kind="rsqrt", peak_learning_rate=1e-2, decay_steps=4))
    operation = Operation(mesh="fsdp=2,tensor=2@0-3", compile_cache="off")

    def run(out, num_steps):
        training = dataclasses.replace(job.training, num_steps=num_steps, batch_ramp=RAMP, optimizer=optimizer)
        ramped = dataclasses.replace(job, training=training, operation=operation)
        return train(ramped.objective(), training, operation, out).state_hash

    whole = run(tmp_path / "whole", 8)
    assert [run(tmp_path / "parts", num_steps) for num_steps in (5, 6, 7, 8)][-1] == whole
    tokens = [row["tokens"] for row in read_metrics(tmp_path / "parts") if "tokens" in row]
    assert tokens[0] == 4 * LENGTH


def test_a_ramp_that_leads_elsewhere_is_refused(text):
    training = job_of(text).training
    with pytest.raises(UsageError, match="must end with global_batch_size=8"):
        dataclasses.replace(training, batch_ramp=((0, 4),))
    with pytest.raises(UsageError, match="must begin with batch 0 and go upwards"):
        dataclasses.replace(training, batch_ramp=((2, 4), (6, 8)))
    with pytest.raises(UsageError, match="every size must be divisible by grad_accum=4"):
        dataclasses.replace(training, batch_ramp=((0, 2), (6, 8)), grad_accum=4)
    ramped = dataclasses.replace(job_of(text), training=dataclasses.replace(training, batch_ramp=((0, 2), (6, 8))))
    with pytest.raises(UsageError, match="global_batch_size=2 must be divisible by"):
        ramped.check(MeshSpec(data=4))
