"""Folders for sentence-transformers: what is in them, that they open here as what they were made of, and refusals.

That the library itself computes the same from them is measured by `benchmarks/sentence_parity.py`.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.interop.huggingface import convert
from jaxscale.nn.families import bert_config, decoder_config, palm_config
from jaxscale.nn.headless import headless
from launch.cli import main
from retrieval.towers.encoder import Encoder, EncoderConfig, TowerPair, init_towers
from retrieval.towers.loading import load_towers
from retrieval.towers.retriever_folder import join_towers, save_retriever
from retrieval.towers.sentence_transformers_folder import export_tower
from tests.retrieval.towers.small_pairs import random_params

TEXTS = ["some words to make pieces of", "some more words"] * 3
BERT = bert_config(num_layers=2, d_model=8, num_heads=2, d_ff=16, vocab_size=60, max_positions=12, dropout_rate=0.1)
LLAMA = headless(
    decoder_config(num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=300, max_positions=12)
)


def towers(transformer=BERT, *, shared=True, score="cosine", query=None, **fields):
    bert = transformer.type_vocab_size > 0
    tokenizer = Tokenizer.train_wordpiece(TEXTS, 60) if bert else Tokenizer.train_bpe(TEXTS, 280).closed_by(2)
    values = {"pooling": "mean" if bert else "last", "projection_dim": None, "prefix": "tell: ", "max_length": 12}
    document = EncoderConfig(transformer=transformer, normalize=score == "cosine", **(values | fields))
    query_config = dataclasses.replace(document, prefix="ask: ", **(query or {}))
    pair = TowerPair(query=query_config, document=document, shared=shared, score=score)
    params = random_params(lambda key: init_towers(pair, key))
    encoders = [
        Encoder(config=pair.config(side), params=pair.params(params, side), tokenizer=tokenizer)
        for side in ("query", "document")
    ]
    return join_towers(query=encoders[0], document=encoders[1], shared=shared, score=score)


def json_of(path):
    return json.loads(path.read_text())


def assert_same_encoder(got, expected):
    assert got.config == expected.config
    assert got.tokenizer.fingerprint == expected.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)


@pytest.mark.parametrize(
    "made",
    [
        lambda: towers(),
        lambda: towers(pooling="cls", score="dot", projection_dim=5),
        lambda: towers(LLAMA, projection_dim=5),
        lambda: towers(headless(dataclasses.replace(LLAMA, qkv_bias=True)), score="dot"),
        lambda: towers(headless(LLAMA, both_ways=True), pooling="mean"),
    ],
    ids=["bert", "bert-cls-dot-projection", "llama-projection", "qwen2-dot", "llama-both-ways"],
)
def test_what_is_read_back_is_the_retriever(made, tmp_path):
    retriever = made()
    export_tower(retriever, tmp_path / "st")
    again = load_towers(tmp_path / "st")
    assert again.contract == retriever.contract
    for side in ("query", "document"):
        assert_same_encoder(again.encoder(side), retriever.encoder(side))


def test_the_layout_is_the_librarys(tmp_path):
    written = export_tower(towers(LLAMA, projection_dim=5), tmp_path / "st", dtype="bfloat16")
    assert written.modules == ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = json_of(tmp_path / "st/modules.json")
    assert [(m["idx"], m["path"]) for m in modules] == [(0, ""), (1, "1_Pooling"), (2, "2_Dense"), (3, "3_Normalize")]
    assert {m["type"].rpartition(".")[0] for m in modules} == {"sentence_transformers.models"}
    pooling = json_of(tmp_path / "st/1_Pooling/config.json")
    assert pooling["word_embedding_dimension"] == 8
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]
    assert json_of(tmp_path / "st/sentence_bert_config.json") == {"max_seq_length": 12, "do_lower_case": False}
    said = json_of(tmp_path / "st/config_sentence_transformers.json")
    assert said["prompts"] == {"query": "ask: ", "document": "tell: "}
    assert (said["default_prompt_name"], said["similarity_fn_name"]) == (None, "cosine")
    assert json_of(tmp_path / "st/config.json")["architectures"] == ["LlamaModel"]
    assert json_of(tmp_path / "st/tokenizer_config.json")["model_max_length"] == 12
    assert set(written.files) < {path.name for path in (tmp_path / "st").iterdir()}
    assert {tensor.dtype.name for tensor in load_file(tmp_path / "st/2_Dense/model.safetensors").values()} == {
        "bfloat16"
    }


def test_towers_with_weights_of_their_own_are_two_folders(tmp_path):
    retriever = towers(shared=False)
    with pytest.raises(UsageError, match=r"weights of their own.* with `--side query` and, to another folder"):
        export_tower(retriever, tmp_path / "st")
    for side, prompt in (("query", "ask: "), ("document", "tell: ")):
        export_tower(retriever, tmp_path / side, side=side)
        said = json_of(tmp_path / side / "config_sentence_transformers.json")
        assert (said["prompts"], said["default_prompt_name"]) == ({side: prompt}, side)
        assert_same_encoder(load_towers(tmp_path / side).encoder(side), retriever.encoder(side))


def test_a_shorter_limit_of_one_side_is_said(tmp_path):
    retriever = towers(query={"max_length": 6})
    written = export_tower(retriever, tmp_path / "both")
    assert (written.max_length, written.cut_here_only) == (12, ("query", 6))
    alone = export_tower(retriever, tmp_path / "query", side="query")
    assert (alone.max_length, alone.cut_here_only) == (6, None)
    with pytest.raises(UsageError, match="the towers compute differently"):
        export_tower(towers(query={"pooling": "cls"}), tmp_path / "st")


def test_nothing_is_left_of_what_is_refused(tmp_path):
    palm = headless(palm_config(num_layers=1, d_model=8, num_heads=2, head_dim=4, vocab_size=300, max_positions=12))
    with pytest.raises(DataError, match="no family of transformers has this model's layout"):
        export_tower(towers(palm), tmp_path / "st")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "st").mkdir()
    with pytest.raises(UsageError, match="exists already; give another folder"):
        export_tower(towers(), tmp_path / "st")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": True}, "bias=True is not supported"),
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh' is not supported, only Identity"),
        ({"use_residual": True}, "use_residual=True is not supported"),
        ({"out_features": 6}, r"expected linear.weight of shape \[6, 8\]"),
    ],
)
def test_a_projection_that_would_be_computed_otherwise_is_refused(change, message, tmp_path):
    export_tower(towers(projection_dim=5), tmp_path / "st")
    config = tmp_path / "st/2_Dense/config.json"
    config.write_text(json.dumps(json_of(config) | change))
    with pytest.raises(DataError, match=message):
        load_towers(tmp_path / "st")


def test_a_projection_needs_a_retriever(tmp_path):
    export_tower(towers(projection_dim=5), tmp_path / "st")
    with pytest.raises(DataError, match="a Dense module, for which a model folder has no place"):
        convert(tmp_path / "st", tmp_path / "model")
    weight = np.full((5, 8), np.nan, np.float32)
    save_file({"linear.weight": weight}, tmp_path / "st/2_Dense/model.safetensors")
    with pytest.raises(DataError, match=r"linear\.weight holds numbers that are not finite"):
        load_towers(tmp_path / "st")


def test_the_verb_says_what_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_retriever(tmp_path / "retriever", towers(query={"max_length": 6}))
    words = ["export", "sentence-transformers", "--model", "retriever", "--out", "st"]
    assert main([*words, "--json", "report.json"]) == 0
    shown = capsys.readouterr().out
    assert "st: Transformer, Pooling, Normalize; up to 12 tokens" in shown
    assert "a query of more than 6 tokens is cut there by jaxscale, and not by sentence-transformers" in shown
    assert json_of(tmp_path / "report.json")["modules"] == ["Transformer", "Pooling", "Normalize"]
    assert main(words) == 2
    assert "st exists already" in capsys.readouterr().err
