"""A model folder comes back as it was written; what does not fit or is damaged is refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError, VerificationError
from jaxscale.nn import functional
from jaxscale.nn.families import decoder_config, t5_config
from jaxscale.nn.model_folder import ModelFolder, SentenceSettings, check_params, load_model, save_model
from jaxscale.store import arrays, commit
from tests.jaxscale.random_params import random_params


@pytest.fixture
def model():
    tokenizer = Tokenizer.train_wordpiece(["sea wind ship sail star"] * 3, 40)
    config = decoder_config(
        num_layers=2, d_model=8, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=tokenizer.vocab_size, max_positions=8
    )
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    settings = SentenceSettings(pooling="last", normalize=True, max_length=8, query_prefix="q: ", document_prefix="")
    return ModelFolder(
        config=config,
        params=jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes),
        tokenizer=tokenizer,
        settings=settings,
        provenance={"source": "a test"},
    )


def test_comes_back_as_it_was_written(model, tmp_path):
    identity = save_model(tmp_path / "model", model)
    got = load_model(tmp_path / "model")
    assert (got.config, got.settings, got.provenance) == (model.config, model.settings, model.provenance)
    assert got.tokenizer.fingerprint == model.tokenizer.fingerprint
    jax.tree.map(np.testing.assert_array_equal, got.params, model.params)
    assert len(identity) == 64


def test_an_encoder_decoder_comes_back_as_it_was_written(model, tmp_path):
    vocab_size = model.tokenizer.vocab_size
    sizes = {"num_layers": 1, "d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 16, "max_positions": 8}
    config = t5_config(vocab_size=vocab_size, **sizes)
    both = dataclasses.replace(model, config=config, params=random_params(config), settings=None)
    save_model(tmp_path / "model", both)
    got = load_model(tmp_path / "model")
    assert got.config == config
    jax.tree.map(np.testing.assert_array_equal, got.params, both.params)
    with pytest.raises(UsageError, match="encoder-decoder, which reads a source"):
        _ = got.transformer
    small = t5_config(vocab_size=vocab_size - 1, **sizes)
    with pytest.raises(DataError, match="do not belong together"):
        save_model(tmp_path / "small", dataclasses.replace(both, config=small, params=random_params(small)))


def test_fields_that_came_later_are_kept(model, tmp_path):
    config = dataclasses.replace(model.config, scaled_logits=True, initial_token_stddev=1.0)
    save_model(tmp_path / "model", dataclasses.replace(model, config=config))
    assert load_model(tmp_path / "model").config == config


def test_the_same_model_has_the_same_identity(model, tmp_path):
    without = dataclasses.replace(model, settings=None)
    first, again, other = (save_model(tmp_path / name, m) for name, m in (("a", model), ("b", model), ("c", without)))
    assert first == again != other
    assert load_model(tmp_path / "c").settings is None


def test_reads_version_1(model, tmp_path):
    card = typed_json.encode({"config": model.config, "settings": model.settings, "provenance": model.provenance})
    for name in ("rope_scaling", "scaled_scores", "parallel", "experts"):
        del card["config"][name]
    with commit.draft(tmp_path / "model", format="jaxscale.model", version=1) as draft:
        (draft.path / "model.json").write_text(json.dumps(card))
        model.tokenizer.save(draft.path / "tokenizer.json")
        arrays.write_tree(draft.path / "params", model.params)
    assert load_model(tmp_path / "model").config == model.config


def test_refuses_parameters_of_another_model(model, tmp_path):
    params = dict(model.params)
    norm = params.pop("norm")
    with pytest.raises(DataError, match=r"norm/scale of shape \(8,\) is missing"):
        save_model(tmp_path / "model", dataclasses.replace(model, params=params))
    with pytest.raises(DataError, match=r"extra/scale of shape .* is unexpected"):
        check_params(model.config, model.params | {"extra": norm})
    with pytest.raises(DataError, match=r"norm/scale: got shape \(9,\), expected \(8,\)"):
        check_params(model.config, model.params | {"norm": {"scale": np.ones(9, np.float32)}})
    assert not (tmp_path / "model").exists()


def test_refuses_to_overwrite(model, tmp_path):
    save_model(tmp_path / "model", model)
    with pytest.raises(UsageError):
        save_model(tmp_path / "model", model)
    save_model(tmp_path / "model", dataclasses.replace(model, settings=None), replace=True)
    assert load_model(tmp_path / "model").settings is None


def test_names_a_damaged_file(model, tmp_path):
    save_model(tmp_path / "model", model)
    file = next((tmp_path / "model/params/norm/scale/c").rglob("*0"))
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(VerificationError, match="norm/scale"):
        load_model(tmp_path / "model")


def test_model_json_names_no_place_of_this_machine(model, tmp_path):
    save_model(tmp_path / "model", model)
    text = (tmp_path / "model/model.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)) == {"config", "settings", "provenance"}
