"""From text to a retriever on the command line: a language model of one's own becomes towers that are searched."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxscale.nn.model_folder import load_model
from jaxscale.observe.metrics import read_metrics
from launch.cli import main
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import read_run
from retrieval.towers.loading import load_towers
from retrieval.towers.start import Towers, start_towers
from tests.jaxscale.data.corpora import write_lines
from tests.retrieval.towers.small_pairs import write_pairs

LANGUAGE_MODEL = f"{Path(__file__).parent / 'language_recipes.py'}:tiny"
MESH = "data=2,fsdp=2,tensor=2"
NO_CACHE = "--operation.compile-cache off"
# Enough for whole words, so that texts are not cut off.
VOCAB_SIZE = 768


def run(words):
    assert main(words.split()) == 0


def losses(folder):
    return [row["loss"] for row in read_metrics(Path(folder)) if "loss" in row]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Pairs, and a language model of a few steps that has read their passages."""
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("pairs"))
    write_lines(Path("text/passages.jsonl"), [doc.passage for doc in BeirFolder.open(Path("pairs")).docs()])
    run(f"data train-tokenizer --input text --vocab-size {VOCAB_SIZE} --out tokenizer.json")
    run("data tokenize --input text --tokenizer tokenizer.json --out tokens --pack-lengths 16")
    lm = f"train {LANGUAGE_MODEL} --transformer.vocab-size {VOCAB_SIZE} --data.datasets tokens"
    run(f"{lm} --out lm --mesh {MESH} {NO_CACHE}")
    assert losses("lm")[-1] < losses("lm")[0]


@pytest.mark.slow
def test_a_language_model_of_ones_own_becomes_a_retriever(home):
    started = start_towers(Towers(init_from="lm", pooling="last", append_end=True), (16, 32), (), seed=0)
    begun, learned = started.params["shared"]["transformer"]["layers"], load_model("lm/model").params["layers"]
    jax.tree.map(np.testing.assert_array_equal, begun, learned)
    train = (
        "train two_tower_decoder_tiny --data.folder pairs --init-from lm --towers.append-end "
        f"--operation.log-every-steps 1 --training.optimizer.schedule.decay-steps 160 {NO_CACHE}"
    )
    run(f"{train} --out towers --mesh {MESH} --training.num-steps 160")
    run(f"{train} --out alone --mesh data=1@0 --training.num-steps 3")
    assert losses("towers")[:3] == pytest.approx(losses("alone"), rel=1e-4)
    assert losses("towers")[-1] < 0.5 * losses("towers")[0]
    towers = load_towers(Path("towers"))
    assert towers.query.config.pooling == "last"
    assert towers.query.config.transformer.headless
    assert towers.query.config.transformer.vocab_size == VOCAB_SIZE

    run(f"embed --model towers --corpus pairs --out vectors --mesh {MESH}")
    run(f"index build --kind flat --vectors vectors --out index --mesh {MESH}")
    # Of made-up words nothing is learned but the pairs themselves.
    run("search --model towers --index index --queries pairs --split train --run train.trec")
    found, qrels = read_run(Path("train.trec")), BeirFolder.open(Path("pairs")).qrels("train")
    assert evaluate(found, qrels, measures=("nDCG@10",)).mean("nDCG@10") > 0.5
