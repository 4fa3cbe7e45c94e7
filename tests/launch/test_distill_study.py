"""`jaxscale distill study`: a page, a picture and figures of every depth; nothing finished is trained again."""

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ET

import pytest

from launch.cli import main
from launch.distill_study_page import page
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.retriever import Retriever
from retrieval.search.queries import read_queries
from retrieval.towers.distillation.study import Kept, Speed, Study, TowerFigures
from tests.retrieval.towers.distillation.small_distillation import MESH, write_home
from tests.retrieval.towers.small_pairs import made_up_records


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """With a split of which no document is relevant, so that even the teacher finds none."""
    home = write_home(tmp_path_factory.mktemp("home"))
    docs, queries, qrels = made_up_records()
    shutil.rmtree(home / "beir")
    irrelevant = {query_id: dict.fromkeys(judged, 0) for query_id, judged in qrels["train"].items()}
    write_beir(home / "beir", docs, queries, qrels | {"irrelevant": irrelevant})
    return home


def study(home, out, *words):
    given = [
        *("--teacher.retriever", home / "teacher", "--data.folder", home / "beir", "--mesh", "data=1@0"),
        *("--operation.compile-cache", home / "compiled", "--training.num-steps", 10, "--data.query-buckets", 16),
        *("--teacher.vectors", home / "vectors", "--test-split", "train", "--num-timed", 32),
    ]
    return main([str(word) for word in ("distill", "study", "distill_query_tower_tiny", "--out", out, *given, *words)])


@pytest.mark.slow
def test_a_study_compares_its_students_with_the_teacher(home, tmp_path, capsys):
    out, report = tmp_path / "study", tmp_path / "report.json"
    assert study(home, out, "--layers", 1, "--json", report) == 0
    said = json.loads(report.read_text())
    teacher, student = said["towers"]
    assert (teacher["name"], student["name"]) == ("teacher", "layers-1")
    assert (teacher["num_layers"], student["num_layers"]) == (2, 1)
    assert student["num_params"] < teacher["num_params"]
    assert all(tower["speed"][name] > 0 for tower in said["towers"] for name in teacher["speed"])
    queries, qrels = read_queries(home / "beir", "train"), BeirFolder.open(home / "beir").qrels("train")
    run = Retriever.load(out / "layers-1", vectors=home / "vectors", mesh=MESH).run(queries, 100)
    expected = evaluate(run, qrels, ["R@50"]).mean("R@50")
    assert student["kept"]["R@50"]["value"] == pytest.approx(expected)
    assert student["kept"]["R@50"]["share"] == pytest.approx(expected / teacher["kept"]["R@50"]["value"])
    assert "| layers-1 | 1 |" in (out / "study.md").read_text()
    assert "layers-1 keeps" in ET.parse(out / "study.svg").getroot().get("aria-label")
    capsys.readouterr()
    assert study(home, out, "--layers", 1) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--layers", "1", "3"], 2, "asks for layer 3 of a teacher that has 2"),
        (["--teacher.vectors="], 2, "a study searches frozen documents"),
        (["--test-split", "nothing"], 3, "has no split 'nothing'"),
        (["--test-split", "dev"], 2, "24 queries are too few to measure 32 at once"),
        (["--test-split", "irrelevant"], 2, "the teacher's nDCG@10 is 0 on these queries"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(home, tmp_path, words, code, message, capsys):
    layers = [] if "--layers" in words else ["--layers", "1"]
    assert study(home, tmp_path / "study", *layers, *words) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_page_says_what_is_kept_and_at_what_speed():
    kept = {name: Kept(value=0.4, share=1.0, p=1.0) for name in ("nDCG@10", "R@50", "R@100")}
    teacher = TowerFigures(
        name="teacher",
        num_layers=6,
        num_params=22_000_000,
        num_params_in_layers=10_000_000,
        kept=kept,
        speed=Speed(p50_ms=4.0, p99_ms=9.5, queries_per_s=900.0),
    )
    student = dataclasses.replace(
        teacher,
        name="layers-1",
        kept=kept | {"nDCG@10": Kept(value=0.36, share=0.9, p=0.0123)},
        speed=Speed(p50_ms=1.0, p99_ms=2.5, queries_per_s=4321.0),
    )
    text = page(
        Study(
            towers=(teacher, student),
            num_queries=2326,
            num_timed=256,
            split="test",
            searched="index",
            compute_dtype="float32",
            mesh="data=1",
        )
    )
    assert "2,326 queries of the split test search the index" in text
    assert "| teacher | 6 | 22,000,000 | 10,000,000 | 0.4000 | 100.0% |  |" in text
    assert "| 0.3600 | 90.0% | 0.0123 |" in text
    assert "| 1.00 | 2.50 | 4,321 |" in text
