"""From text to text on the command line: a tokenizer, tokens, a model, what it writes."""

import json
from pathlib import Path

import pytest

from jaxscale.observe.metrics import read_metrics
from launch import cli
from tests.jaxscale.data import corpora

RECIPE = f"{Path(__file__).parent / 'language_recipes.py'}:tiny"


@pytest.fixture
def tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpora.files(Path("corpus"), 2)
    train = "data train-tokenizer --input corpus --vocab-size 320 --out tokenizer.json"
    assert cli.main(train.split()) == 0
    words = "data tokenize --input corpus --tokenizer tokenizer.json --out tokens --pack-lengths 16"
    assert cli.main(words.split()) == 0
    return Path("tokens")


def trained(out, *words):
    report = Path(f"{out}.json")
    flags = ["--data.datasets", "tokens", "--operation.compile-cache", "off", "--json", str(report)]
    assert cli.main(["train", RECIPE, "--out", out, *flags, *words]) == 0
    return json.loads(report.read_text())


@pytest.mark.slow
def test_from_text_to_text(tokens, capsys):
    whole = trained("whole")
    # Another mesh, stopped half-way and made longer: the same batches, and losses that are equal but for rounding.
    mesh = ("--mesh", "fsdp=4,tensor=2")
    trained("parts", *mesh, "--training.num-steps", "6")
    parts = trained("parts", *mesh)
    assert whole["step"] == parts["step"] == 12
    losses = [[row["loss"] for row in read_metrics(Path(out))] for out in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0] - 0.5
    capsys.readouterr()
    assert cli.main(["generate", "--model", "whole/model", "--prompt", "the cat", "--max-new-tokens", "8"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_a_job_without_text_says_what_to_give(capsys):
    assert cli.main(["train", RECIPE, "--out", "nowhere"]) == 2
    assert "add `--data.datasets DIR`, a folder that `jaxscale data tokenize` made" in capsys.readouterr().err
    assert not Path("nowhere").exists()
