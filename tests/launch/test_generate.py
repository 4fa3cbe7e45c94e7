"""`jaxscale generate` continues prompts with a model folder, as text."""

import json

import numpy as np
import pytest

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.families import decoder_config
from jaxscale.nn.model_folder import ModelFolder, save_model
from launch.cli import main
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
