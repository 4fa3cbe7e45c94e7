"""What a job says of its text: shares that come out as said, and datasets that do not go together."""

import numpy as np
import pytest

from jaxscale.data.text_data import TextData, rows_of
from jaxscale.data.token_writer import tokenization, write_dataset
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError, VerificationError
from tests.jaxscale.data import corpora


def make(folder, name, num_files, tokenizer=None):
    tokenizer = tokenizer or corpora.tokenizer()
    files = corpora.files(folder / f"{name}-in", num_files)
    return str(write_dataset(folder / name, files, tokenizer, tokenization(tokenizer, pack_lengths=(16,))).path)


@pytest.fixture
def two(tmp_path):
    return make(tmp_path, "small", 1), make(tmp_path, "large", 3)


def sources_of(data, num_samples):
    """How often each dataset's rows come, and how many rows it has."""
    datasets = data.open()
    mixture = data.mixture(datasets, 16, seed=0)
    sizes = [rows_of(dataset, data.rows, 16).num_sequences for dataset in datasets]
    return np.bincount(mixture.places(np.arange(num_samples))[0], minlength=len(datasets)), sizes


def test_weights_are_shares_of_all_rows(two):
    counts, _ = sources_of(TextData(datasets=two, weights=(3.0, 1.0)), 400)
    assert counts == pytest.approx([300, 100], abs=1)


@pytest.mark.parametrize("rows", ["packed", "concatenated"])
@pytest.mark.parametrize(("epochs", "times"), [((), (1, 1)), ((3.0, 1.0), (3, 1))])
def test_epochs_are_how_often_each_is_seen_in_one_pass(two, rows, epochs, times):
    data = TextData(datasets=two, epochs=epochs, rows=rows)
    _, sizes = sources_of(data, 1)
    expected = [many * size for many, size in zip(times, sizes, strict=True)]
    counts, _ = sources_of(data, sum(expected))
    assert counts == pytest.approx(expected, abs=1)


def test_the_seed_is_the_order_and_nothing_else_is(two):
    data = TextData(datasets=two)
    first, again, other = (data.mixture(data.open(), 16, seed).rows(0, 8)["tokens"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_datasets_of_different_tokenizers_are_refused(tmp_path, two):
    other = make(tmp_path, "other", 1, Tokenizer.train_bpe(["something else"] * 3, 270))
    with pytest.raises(UsageError, match="were made by different tokenizers"):
        TextData(datasets=(two[0], other)).open()


def test_an_absent_dataset_and_a_cut_shard_are_named(tmp_path, two):
    with pytest.raises(DataError, match="absent"):
        TextData(datasets=(two[0], str(tmp_path / "absent"))).open()
    shard = next((tmp_path / "large").glob("*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(VerificationError, match=shard.name):
        TextData(datasets=two).open()


def test_rows_of_a_length_that_was_not_packed_are_refused(two):
    data = TextData(datasets=two)
    with pytest.raises(UsageError, match=r"has no packs for sequence_length=24 \(it has: 16\)"):
        data.mixture(data.open(), 24, seed=0)
    with pytest.raises(UsageError, match="none of its shards fills a row of sequence_length=100000"):
        rows_of(data.open()[0], "concatenated", 100_000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datasets": ("a", "a")}, "names a folder twice"),
        ({"datasets": ("a", "b"), "weights": (1.0,)}, "weights has 1 numbers for 2 datasets"),
        ({"datasets": ("a",), "epochs": (0.0,)}, r"epochs=\[0.0\] must be finite and above 0"),
        ({"datasets": ("a",), "weights": (float("nan"),)}, "must be finite and above 0"),
        ({"datasets": ("a",), "weights": (1.0,), "epochs": (1.0,)}, "give one of them"),
    ],
)
def test_what_can_not_be_said(fields, message):
    with pytest.raises(UsageError, match=message):
        TextData(**fields)
