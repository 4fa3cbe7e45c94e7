"""Rows of tokens: every token once, no document sees another, and the same as a plain loop makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data import token_writer
from jaxscale.data.packing import pack
from jaxscale.data.token_rows import NO_TARGET, ConcatenatedRows, PackedRows
from jaxscale.errors import UsageError
from tests.jaxscale.data import corpora

LENGTH = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = corpora.tokenizer()
    how = token_writer.tokenization(tokenizer, pack_lengths=(LENGTH, 64))
    return token_writer.write_dataset(folder / "out", corpora.files(folder / "in", 3), tokenizer, how)


def documents(dataset):
    return [dataset.document(n).tolist() for n in range(dataset.num_documents)]


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60), length=st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_packs_hold_every_token_once_and_no_row_too_much(sizes, length):
    packs = pack(np.cumsum([0, *sizes]), length)
    covered = np.zeros(sum(sizes), int)
    for start, size in zip(packs.starts.astype(int), packs.lengths.astype(int), strict=True):
        covered[start : start + size] += 1
    assert (covered == 1).all()
    begins = np.concatenate([[0], packs.row_ends[:-1]]).astype(int)
    filled = [packs.lengths[a:b].sum() for a, b in zip(begins, packs.row_ends.astype(int), strict=True)]
    assert min(filled) > 0
    assert max(filled) <= length
    # Best fit leaves no two rows of a block half empty.
    assert sorted(filled)[1] * 2 > length if len(filled) > 1 else True


def test_packed_rows_are_what_a_loop_makes(dataset):
    rows = PackedRows(dataset, LENGTH).sequences(np.arange(PackedRows(dataset, LENGTH).num_sequences))
    found = {}
    number_of = {}
    for shard_number, shard in enumerate(dataset.shards):
        for number in range(shard.counts.num_documents):
            for at in range(int(shard.offsets[number]), int(shard.offsets[number + 1])):
                number_of[shard_number, at] = number
    for row in range(len(rows["tokens"])):
        for segment in range(1, rows["segments"][row].max() + 1):
            columns = np.flatnonzero(rows["segments"][row] == segment)
            assert (np.diff(columns) == 1).all()
            assert rows["positions"][row, columns].tolist() == list(range(len(columns)))
            tokens, targets = rows["tokens"][row, columns].tolist(), rows["targets"][row, columns].tolist()
            assert tokens[1:] == targets[:-1]
            key = (tuple(tokens), targets[-1])
            found[key] = found.get(key, 0) + 1
    wanted = {}
    for ids in documents(dataset):
        for start in range(0, len(ids), LENGTH):
            piece = tuple(ids[start : start + LENGTH])
            after = ids[start + LENGTH] if start + LENGTH < len(ids) else NO_TARGET
            wanted[piece, after] = wanted.get((piece, after), 0) + 1
    assert found == wanted
    empty = rows["segments"] == 0
    assert (rows["targets"][empty] == NO_TARGET).all()
    assert (rows["tokens"][empty] == 0).all()


def test_concatenated_rows_are_the_stream_of_each_shard(dataset):
    source = ConcatenatedRows(dataset, LENGTH)
    rows = source.sequences(np.arange(source.num_sequences))
    wanted = []
    for shard in dataset.shards:
        ids = shard.tokens.tolist()
        for start in range(0, len(ids) - LENGTH, LENGTH):
            wanted.append((ids[start : start + LENGTH], ids[start + 1 : start + LENGTH + 1]))
    assert [*zip(rows["tokens"].tolist(), rows["targets"].tolist(), strict=True)] == wanted
    assert (rows["segments"] == 1).all()
    assert (rows["positions"] == np.arange(LENGTH)).all()


@pytest.mark.parametrize("kind", [PackedRows, ConcatenatedRows])
def test_rows_do_not_depend_on_what_else_is_asked(dataset, kind):
    source = kind(dataset, LENGTH)
    everything = source.sequences(np.arange(source.num_sequences))
    some = np.array([source.num_sequences - 1, 0, 3, 0])
    asked = source.sequences(some)
    for name, leaf in asked.items():
        assert leaf.dtype == np.int32
        np.testing.assert_array_equal(leaf, everything[name][some])
    with pytest.raises(IndexError, match="must lie in"):
        source.sequences(np.array([source.num_sequences]))


def test_lengths_that_are_not_there(dataset):
    with pytest.raises(UsageError, match=r"no packs for sequence_length=9 \(it has: 8, 64\)"):
        PackedRows(dataset, 9)
    with pytest.raises(UsageError, match="none of its shards fills a row"):
        ConcatenatedRows(dataset, 10_000)
