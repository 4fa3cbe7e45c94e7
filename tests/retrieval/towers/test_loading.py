"""Towers opened from every kind of folder, and what is refused."""

import json

import jax
import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.nn import functional
from jaxscale.nn.families import bert_config, decoder_config, t5_config
from jaxscale.nn.model_folder import ModelFolder, SentenceSettings, save_model
from retrieval.formats.beir import write_beir
from retrieval.towers.encoder import Encoder, EncoderConfig
from retrieval.towers.loading import EncoderOverrides, load_towers
from retrieval.towers.retriever_folder import join_towers, save_retriever
from tests.retrieval.towers.small_pairs import made_up_records, random_params
from tests.shared_data import shared_path

TOKENIZER = Tokenizer.train_wordpiece(["some words to make pieces of", "some more words"] * 3, 60)
TRANSFORMER = bert_config(
    num_layers=1, d_model=8, num_heads=2, d_ff=16, vocab_size=60, max_positions=12, dropout_rate=0.0
)
BYTES = Tokenizer.train_bpe(["some words to make pieces of", "some more words"] * 3, 280)
DECODER = decoder_config(
    num_layers=1,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    d_ff=16,
    vocab_size=300,
    max_positions=12,
    tied_output=False,
)
SETTINGS = SentenceSettings(
    pooling="cls", normalize=False, max_length=10, query_prefix="ask: ", document_prefix="tell: "
)


def write_model(path, settings=SETTINGS):
    params = random_params(lambda key: functional.init_params(TRANSFORMER, key))
    save_model(
        path, ModelFolder(config=TRANSFORMER, params=params, tokenizer=TOKENIZER, settings=settings, provenance={})
    )
    return path


def write_retriever(path):
    config = EncoderConfig(
        transformer=TRANSFORMER, pooling="mean", normalize=True, projection_dim=None, prefix="", max_length=12
    )
    params = {"transformer": random_params(lambda key: functional.init_params(TRANSFORMER, key))}
    encoder = Encoder(config=config, params=params, tokenizer=TOKENIZER)
    save_retriever(path, join_towers(query=encoder, document=encoder, shared=True, score="cosine"))
    return path


def test_a_model_is_used_as_its_settings_say(tmp_path):
    towers = load_towers(write_model(tmp_path / "model"))
    assert towers.shared
    assert towers.contract.score == "dot"
    for side, prefix in (("query", "ask: "), ("document", "tell: ")):
        config = towers.encoder(side).config
        assert (config.pooling, config.normalize, config.max_length, config.prefix) == ("cls", False, 10, prefix)


def test_a_model_without_settings_is_used_by_the_stated_defaults(tmp_path):
    config = load_towers(write_model(tmp_path / "model", settings=None)).query.config
    assert (config.pooling, config.normalize, config.max_length, config.prefix) == ("mean", True, 12, "")


def test_overrides_win_over_a_models_settings(tmp_path):
    path = write_model(tmp_path / "model")
    towers = load_towers(path, overrides=EncoderOverrides(pooling="mean", normalize=True, query_prefix=""))
    assert (towers.query.config.pooling, towers.query.config.prefix) == ("mean", "")
    assert towers.document.config.prefix == "tell: "
    assert towers.contract.score == "cosine"
    assert towers.contract.space != load_towers(path).contract.space


def write_decoder(path, tokenizer=BYTES):
    save_model(
        path,
        ModelFolder(
            config=DECODER,
            params=random_params(lambda key: functional.init_params(DECODER, key)),
            tokenizer=tokenizer,
            settings=None,
            provenance={},
        ),
    )
    return path


def test_a_decoder_is_used_without_its_output_and_with_the_token_that_ends_texts(tmp_path):
    path = write_decoder(tmp_path / "model")
    as_it_is = load_towers(path).query
    assert as_it_is.config.transformer.headless
    assert "output" not in as_it_is.params["transformer"]
    towers = load_towers(path, overrides=EncoderOverrides(pooling="last", append_end=True, both_ways=True))
    assert towers.query.config.transformer.kind == "encoder"
    end = BYTES.token_id("</s>")
    long, short = towers.query.tokenize(["some words and more words and some more words", "some"]).ids
    assert (len(long), long[-1], short[-1]) == (12, end, end)
    assert end not in as_it_is.tokenize(["some"]).ids[0]
    assert len({load_towers(path).contract.space, towers.contract.space}) == 2


def test_an_end_that_the_tokenizer_lacks_is_refused(tmp_path):
    spec = json.loads(BYTES.to_json().replace("</s>", "<|stop|>"))
    path = write_decoder(tmp_path / "model", Tokenizer(spec))
    with pytest.raises(DataError, match=r"append_end=True, but the tokenizer of .* has no token that ends texts"):
        load_towers(path, overrides=EncoderOverrides(append_end=True))


def test_an_encoder_decoder_is_no_tower(tmp_path):
    config = t5_config(num_layers=1, d_model=8, num_heads=2, head_dim=4, d_ff=8, vocab_size=300, max_positions=12)
    params = random_params(lambda key: functional.init_params(config, key))
    save_model(
        tmp_path / "t5",
        ModelFolder(config=config, params=params, tokenizer=BYTES, settings=None, provenance={}),
    )
    with pytest.raises(UsageError, match="the model is an encoder-decoder"):
        load_towers(tmp_path / "t5")


def test_a_retriever_cannot_be_overridden(tmp_path):
    path = write_retriever(tmp_path / "retriever")
    assert load_towers(path).contract.score == "cosine"
    with pytest.raises(UsageError, match="its pooling can't be overridden"):
        load_towers(path, overrides=EncoderOverrides(pooling="cls"))


def test_a_run_folder_means_its_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.json").write_text("{}")
    with pytest.raises(DataError, match="has exported no model yet"):
        load_towers(run)
    write_retriever(run / "model")
    assert load_towers(run).contract == load_towers(run / "model").contract


def test_a_hugging_face_folder_is_opened_as_it_is():
    towers = load_towers(shared_path("models/bert-tiny-bleurt"))
    assert towers.query.config.transformer.num_params == 4369408
    ids = towers.query.tokenize(["hello world"]).ids[0]
    np.testing.assert_array_equal(ids, [101, 7592, 2088, 102])
    assert jax.tree.leaves(towers.query.params)[0].dtype == np.float32


def test_what_holds_no_towers_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        load_towers(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds neither MANIFEST\.json nor config\.json"):
        load_towers(tmp_path)
    corpus = write_beir(tmp_path / "corpus", *made_up_records(num_docs=4)).path
    with pytest.raises(DataError, match=r"holds jaxscale\.beir, expected jaxscale\.retriever or jaxscale\.model"):
        load_towers(corpus)
