"""`jaxscale distill`: the student is made and searches, what is frozen is reported, bad input writes nothing."""

import json
import shutil

import pytest

from jaxscale.store import commit
from launch.cli import main
from launch.verbs import train
from retrieval.embed import embed_corpus
from retrieval.formats.beir import write_beir
from retrieval.index.build import build_index
from retrieval.index.parameters import IndexRequest
from retrieval.records import Doc
from retrieval.vectors import open_vectors
from tests.retrieval.towers.distillation.small_distillation import MESH, small_retriever, write_home

RECIPE = "distill_query_tower_tiny"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


def distill(home, out, *words, recipe=RECIPE):
    given = [
        *("--teacher.retriever", home / "teacher", "--data.folder", home / "beir", "--mesh", "data=1@0"),
        *("--operation.compile-cache", home / "compiled", "--training.num-steps", 20, "--data.query-buckets", 16),
    ]
    return main([str(word) for word in ("distill", recipe, "--out", out, *given, *words)])


def frozen_bytes(home):
    folders = [home / name for name in ("teacher", "vectors", "index")]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_the_student_searches_the_index_and_the_report_says_that_nothing_frozen_changed(home, tmp_path, capsys):
    frozen = ("--teacher.vectors", home / "vectors", "--teacher.index", home / "index")
    before = frozen_bytes(home)
    report = tmp_path / "report.json"
    assert distill(home, tmp_path / "run", *frozen, "--json", report) == 0
    assert frozen_bytes(home) == before
    said = json.loads(report.read_text())
    identities = {name: commit.open_committed(home / name).manifest.identity for name in ("vectors", "index")}
    assert said["frozen"] == {"before": identities, "after": identities}
    assert f"index unchanged: {identities['index'][:16]}" in capsys.readouterr().out
    assert (tmp_path / "run.teacher-queries" / "MANIFEST.json").is_file()
    asked = (
        "search",
        "--model",
        tmp_path / "run",
        "--index",
        home / "index",
        "--query",
        "title1",
        "--mesh",
        "data=1@0",
    )
    assert main([str(word) for word in asked]) == 0
    assert distill(home, tmp_path / "run", *frozen) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_can_be_replayed(home, tmp_path):
    assert distill(home, tmp_path / "run") == 0
    assert main(["replay", str(tmp_path / "run"), "--step", "2"]) == 0


def test_an_index_that_changes_meanwhile_is_reported(home, tmp_path, monkeypatch, capsys):
    shutil.copytree(home / "index", tmp_path / "index")

    def change(self):
        build_index(open_vectors(home / "vectors"), tmp_path / "index", IndexRequest(kind="hnsw"), MESH, replace=True)
        return {}

    monkeypatch.setattr(train.Command, "run", change)
    assert distill(home, tmp_path / "run", "--teacher.index", tmp_path / "index") == 5
    assert "the index changed while the student was distilled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--student.num-layers", "3"], 2, "asks for layer 3 of a teacher that has 2"),
        (["--loss.squared-error", "0", "--loss.cosine", "0"], 2, "are all 0; nothing would be learned"),
        (["--teacher.query-vectors", "{home}/vectors"], 3, "queries are missing in the teacher's vectors"),
        (["--teacher.vectors", "{other}/vectors"], 2, "not of the teacher's space"),
        (["--teacher.index", "{other}/index"], 2, "not of the teacher's space"),
        (["--teacher.retriever", "{home}/nothing"], 3, "there is no such folder"),
        (["--training.global-batch-size", "1024"], 2, "is more than the"),
    ],
)
def test_bad_input_is_refused_and_writes_nothing(home, other, tmp_path, words, code, message, capsys):
    given = [word.format(home=home, other=other) for word in words]
    assert distill(home, tmp_path / "run", *given) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Vectors and an index of another space."""
    folder = tmp_path_factory.mktemp("other")
    corpus = write_beir(folder / "beir", [Doc("d", "", "dada"), Doc("e", "", "fifi")], [], {})
    vectors = embed_corpus(small_retriever(seed=1), corpus, folder / "vectors", MESH)
    build_index(vectors, folder / "index", IndexRequest(kind="flat"), MESH)
    return folder


def test_a_recipe_that_distils_nothing_is_refused(tmp_path, capsys):
    assert distill(tmp_path, tmp_path / "run", recipe="two_tower_tiny") == 2
    assert (
        "distils no query tower; use distill_query_tower, or `jaxscale train two_tower_tiny`" in capsys.readouterr().err
    )


def test_a_place_that_is_no_run_folder_is_refused_before_the_teacher_works(home, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    assert distill(home, tmp_path / "run") == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
