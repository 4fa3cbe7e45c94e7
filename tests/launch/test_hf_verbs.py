"""`import hf` and `export hf`: in and out, and --check against interpreters without transformers."""

import json
import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.jaxscale.interop.small_folders import write_folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "hf", "llama")


def test_in_and_out(capsys):
    assert main(["import", "hf", "hf", "--out", "model", "--json", "report.json"]) == 0
    assert "model: decoder, 2 layers, 16 wide, 13,520 parameters" in capsys.readouterr().out
    assert json.loads(Path("report.json").read_text())["provenance"]["model_type"] == "llama"
    assert main(["generate", "--model", "model", "--prompt", "the sea", "--max-new-tokens", "3"]) == 0
    assert main(["export", "hf", "--model", "model", "--out", "out"]) == 0
    assert "out: model.safetensors, config.json, tokenizer_config.json, tokenizer.json" in capsys.readouterr().out
    assert main(["import", "hf", "out", "--out", "again"]) == 0


def test_a_check_needs_transformers(capsys):
    assert main(["import", "hf", "hf", "--out", "model", "--check", "--python", sys.executable]) == 4
    assert "give an interpreter that has torch and transformers" in capsys.readouterr().err
    assert main(["import", "hf", "hf", "--out", "other", "--check", "--python", "none"]) == 4
    assert "none can't be run" in capsys.readouterr().err


# What `compare` runs in place of an interpreter with transformers: writes scores of the asked shape, all zero.
STAND_IN = """#!{python}
import json, sys
import numpy as np
tokens = json.load(open(sys.argv[3]))["tokens"]
np.save(sys.argv[4], np.zeros((1, len(tokens[0]), 300), np.float32))
"""


def test_scores_that_differ_are_an_error(tmp_path, capsys):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    assert main(["import", "hf", "hf", "--out", "model", "--check", "--python", str(stand_in)]) == 5
    assert "its scores differ from those of transformers by" in capsys.readouterr().err
