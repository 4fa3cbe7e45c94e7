"""`jaxscale generate` continues prompts with a model folder, as text."""

import json

import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.families import decoder_config, t5_config
from jaxscale.nn.generation import generate_targets
from jaxscale.nn.model_folder import ModelFolder, save_model
from launch.cli import main
from tests.jaxscale.interop.small_folders import write_folder
from tests.jaxscale.random_params import random_params

TEXTS = ["the sea was calm and the ship lay still", "the wind blew and the sea rose"] * 3


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer.train_bpe(TEXTS, 300)
    config = decoder_config(
        num_layers=1, d_model=8, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=tokenizer.vocab_size, max_positions=40
    )
    params = random_params(config)
    model = ModelFolder(config=config, params=params, tokenizer=tokenizer, settings=None, provenance={})
    save_model(tmp_path / "run" / "model", model)
    return tmp_path / "run"


def report(tmp_path, *words):
    assert main(["generate", *words, "--json", str(tmp_path / "report.json")]) == 0
    return json.loads((tmp_path / "report.json").read_text())["continuations"]


def test_continues_prompts_from_the_line_and_from_a_file(folder, tmp_path, capsys):
    (tmp_path / "prompts").write_text("the ship\nthe wind blew and\n")
    options = ("--model", str(folder), "--max-new-tokens", "6")
    both = report(tmp_path, *options, "--prompt", "the sea", "--prompts", str(tmp_path / "prompts"))
    assert [one["prompt"] for one in both] == ["the sea", "the ship", "the wind blew and"]
    shown = capsys.readouterr().out
    tokenizer = Tokenizer.load(folder / "model" / "tokenizer.json")
    for one in both:
        assert one["prompt"] + one["text"] in shown
        assert one["text"] == tokenizer.decode(np.array(one["continuation"]["tokens"]))
        assert one["continuation"]["stopped"] or len(one["continuation"]["tokens"]) == 6
    alone = report(tmp_path, "--model", str(folder / "model"), "--max-new-tokens", "6", "--prompt", "the ship")
    assert alone == [both[1]]


def test_refuses_a_stop_token_that_is_none_and_a_prompt_that_is_too_long(folder, capsys):
    assert main(["generate", "--model", str(folder), "--prompt", "the", "--stop", "nosuch"]) == 2
    assert "stop='nosuch' is no token" in capsys.readouterr().err
    assert main(["generate", "--model", str(folder), "--prompt", "the sea " * 40]) == 2
    assert "max_positions=40" in capsys.readouterr().err


@pytest.fixture
def encoder_decoder(tmp_path):
    tokenizer = Tokenizer.train_bpe(TEXTS, 300)
    config = t5_config(
        num_layers=1,
        d_model=8,
        num_heads=2,
        head_dim=4,
        d_ff=16,
        vocab_size=tokenizer.vocab_size + 4,
        max_positions=40,
    )
    params = random_params(config)
    model = ModelFolder(config=config, params=params, tokenizer=tokenizer, settings=None, provenance={})
    save_model(tmp_path / "t5", model)
    return model


def test_an_encoder_decoder_reads_prompts_and_fills_in_what_is_cut_out(encoder_decoder, tmp_path, capsys):
    options = ("--model", str(tmp_path / "t5"), "--max-new-tokens", "12")
    texts = ["the sea <extra_id_0> calm and<extra_id_1>", "the wind blew"]
    both = report(tmp_path, *options, "--prompt", *texts)
    shown = capsys.readouterr().out
    tokenizer, config, params = encoder_decoder.tokenizer, encoder_decoder.config, encoder_decoder.params
    last, end = config.decoder.vocab_size - 1, tokenizer.token_id("</s>")

    def ids(text):
        return tokenizer.encode_batch([text], 40).ids[0].tolist()

    sources = [[*ids("the sea "), last, *ids(" calm and"), last - 1, end], [*ids("the wind blew"), end]]
    made = generate_targets(config, params, sources, start_id=tokenizer.pad_id, max_new_tokens=12, stop_ids=[end])
    assert [tuple(one["continuation"]["tokens"]) for one in both] == [one.tokens for one in made]
    assert shown.strip() == "\n\n".join(one["text"] for one in both).strip()
    drawn = report(tmp_path, *options, "--prompt", *texts, "--temperature", "2", "--top-p", "0.9", "--seed", "1")
    assert drawn != both
    assert drawn == report(
        tmp_path, *options, "--prompt", *texts, "--temperature", "2", "--top-p", "0.9", "--seed", "1"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prompt", "the sea", ""), "a prompt is empty; an encoder-decoder writes what follows from a text"),
        (("--prompt", "the sea " * 40), "source 0 has 42 tokens: more than the model's max_positions=40"),
        (("--prompt", "the", "--max-new-tokens", "40"), "which with max_new_tokens=40 is more than the model's"),
    ],
)
def test_what_an_encoder_decoder_can_not_read_or_write_is_refused(encoder_decoder, tmp_path, capsys, words, message):
    assert main(["generate", "--model", str(tmp_path / "t5"), "--max-new-tokens", "4", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_imported_encoder_decoder_writes(tmp_path):
    write_folder(tmp_path / "hf", "t5-1.1")
    assert main(["import", "hf", str(tmp_path / "hf"), "--out", str(tmp_path / "model")]) == 0
    (one,) = report(tmp_path, "--model", str(tmp_path / "model"), "--max-new-tokens", "5", "--prompt", "the sea")
    assert one["continuation"]["stopped"] or len(one["continuation"]["tokens"]) == 5
