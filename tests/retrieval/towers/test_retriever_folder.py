"""Retriever folders: written and read back equal, refused when damaged; encoders named by all they depend on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.nn.families import bert_config
from jaxscale.store import commit
from retrieval.towers.encoder import Encoder, EncoderConfig, TowerPair, init_towers
from retrieval.towers.fingerprint import encoder_sha256
from retrieval.towers.retriever_folder import join_towers, read_retriever, save_retriever, with_query_tower
from tests.retrieval.towers.small_pairs import random_params

TOKENIZER = Tokenizer.train_wordpiece(["some words to make pieces of", "some more words"] * 3, 60)


def towers(*, shared=False, score="dot", **query_changes):
    transformer = bert_config(
        num_layers=1, d_model=8, num_heads=2, d_ff=16, vocab_size=60, max_positions=12, dropout_rate=0.0
    )
    config = EncoderConfig(
        transformer=transformer,
        pooling="mean",
        normalize=score == "cosine",
        projection_dim=None if shared else 4,
        prefix="",
        max_length=12,
    )
    query_config = dataclasses.replace(config, prefix="query: ", **query_changes)
    pair = TowerPair(query=query_config, document=config, shared=shared, score=score)
    params = random_params(lambda key: init_towers(pair, key))
    query, document = (
        Encoder(config=pair.config(side), params=pair.params(params, side), tokenizer=TOKENIZER)
        for side in ("query", "document")
    )
    return join_towers(query=query, document=document, shared=shared, score=score)


def assert_same_encoder(got, expected):
    assert got.config == expected.config
    assert got.tokenizer.fingerprint == expected.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_read_equals_what_was_written(tmp_path, shared):
    written = towers(shared=shared)
    save_retriever(tmp_path / "retriever", written)
    got = read_retriever(tmp_path / "retriever")
    assert got.shared == shared
    assert got.contract == written.contract
    for side in ("query", "document"):
        assert_same_encoder(got.encoder(side), written.encoder(side))
        assert encoder_sha256(got.encoder(side)) == got.identity(side).sha256
        got.contract.require_speaks(got.identity(side))
    folders = {path.name for path in (tmp_path / "retriever" / "params").iterdir()}
    assert folders == ({"shared"} if shared else {"query", "document"})


def test_device_arrays_are_written_too(tmp_path):
    written = towers()
    on_device = dataclasses.replace(
        written, query=dataclasses.replace(written.query, params=jax.tree.map(jax.numpy.asarray, written.query.params))
    )
    save_retriever(tmp_path / "retriever", on_device)
    assert_same_encoder(read_retriever(tmp_path / "retriever").query, written.query)


def test_a_folder_is_replaced_only_when_asked(tmp_path):
    save_retriever(tmp_path / "retriever", towers())
    with pytest.raises(UsageError, match="exists already"):
        save_retriever(tmp_path / "retriever", towers(shared=True))
    save_retriever(tmp_path / "retriever", towers(shared=True), replace=True)
    assert read_retriever(tmp_path / "retriever").shared


@pytest.mark.parametrize("name", ["retriever.json", "tokenizer.json"])
def test_damage_is_found_and_named(tmp_path, name):
    save_retriever(tmp_path / "retriever", towers())
    file = tmp_path / "retriever" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=name):
        read_retriever(tmp_path / "retriever")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no committed directory"):
        read_retriever(tmp_path)


def test_the_description_is_readable_json(tmp_path):
    save_retriever(tmp_path / "retriever", towers())
    values = json.loads((tmp_path / "retriever" / "retriever.json").read_text())
    assert values["contract"]["score"] == "dot"
    assert values["query"]["prefix"] == "query: "


def test_an_encoder_is_named_by_all_its_vectors_depend_on():
    encoder = towers().document
    base = encoder_sha256(encoder)
    other_tokenizer = Tokenizer.train_wordpiece(["entirely different text", "different"] * 3, 40)
    nudged = jax.tree.map(np.array, encoder.params)
    nudged["transformer"]["layers"]["mlp"]["up"]["bias"][0, 0] = np.float32(1e-30)
    changed = [
        dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, max_length=11)),
        dataclasses.replace(encoder, tokenizer=other_tokenizer),
        dataclasses.replace(encoder, params=nudged),
    ]
    assert encoder_sha256(dataclasses.replace(encoder, params=jax.tree.map(np.array, encoder.params))) == base
    assert len({base, *map(encoder_sha256, changed)}) == 4


def test_towers_of_different_spaces_cannot_be_joined():
    with pytest.raises(DataError, match="normalisation is True"):
        towers(normalize=True)


def test_a_query_tower_that_joined_is_the_folders_and_the_documents_stay(tmp_path):
    founded = towers(shared=True)
    smaller = jax.tree.map(lambda leaf: 0.9 * leaf, founded.query.params)
    joined = with_query_tower(founded, dataclasses.replace(founded.query, params=smaller))
    save_retriever(tmp_path / "joined", joined)
    got = read_retriever(tmp_path / "joined")
    assert not got.shared
    assert got.identity("query").sha256 == encoder_sha256(joined.query) != founded.identity("query").sha256
    assert got.identity("document") == founded.identity("document")
    assert got.contract.space == founded.contract.space
    # A reader of version 1 would take the founder for the folder's own encoder.
    assert commit.open_committed(tmp_path / "joined").manifest.version == 2
    save_retriever(tmp_path / "founded", founded)
    assert commit.open_committed(tmp_path / "founded").manifest.version == 1


def test_a_query_tower_of_other_dims_does_not_join():
    with pytest.raises(DataError, match="dims is 4, the document encoder's 8"):
        with_query_tower(towers(shared=True), towers(shared=False).query)
