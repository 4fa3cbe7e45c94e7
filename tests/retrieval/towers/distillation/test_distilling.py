"""A whole distillation: nearer to the teacher, documents untouched, searched through the old index, the same bits."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.observe.metrics import read_metrics
from jaxscale.store import commit
from jaxscale.train.loop import train
from retrieval.encode import encode_texts
from retrieval.retriever import Retriever
from retrieval.towers.fingerprint import encoder_identity
from retrieval.towers.loading import load_towers
from retrieval.towers.retriever_folder import save_retriever
from retrieval.vectors import open_vectors
from tests.jaxscale.train import runs
from tests.retrieval.towers.distillation.small_distillation import (
    MESH,
    small_job,
    small_retriever,
    write_home,
)
from tests.retrieval.towers.small_pairs import made_up_records

TEXTS = [query.text for query in made_up_records()[1] if query.id in made_up_records()[2]["dev"]]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def distilled(home):
    """The result of a distillation, and what the frozen folders were before it."""
    before = {name: commit.open_committed(home / name).manifest.identity for name in ("teacher", "vectors", "index")}
    job = small_job(home, home / "run")
    return train(job.objective(), job.training, job.operation, home / "run"), before


def mean_cosine(student, teacher):
    ours, theirs = (encode_texts(towers.query, TEXTS, MESH).vectors for towers in (student, teacher))
    return float((ours * theirs).sum(axis=1).mean())


def test_the_student_comes_near_the_teacher(home, distilled):
    result, _ = distilled
    measured = {row["step"]: row for row in read_metrics(home / "run") if "dev/cosine" in row}
    assert measured[60]["dev/cosine"] > max(measured[0]["dev/cosine"] + 0.15, 0.9)
    assert "dev/nDCG@10" in measured[60]
    exported, teacher = load_towers(home / "run"), load_towers(home / "teacher")
    assert exported.query.config.transformer.num_layers == 1
    assert mean_cosine(exported, teacher) == pytest.approx(result.best.value, abs=1e-3)


def test_documents_and_index_are_not_touched(home, distilled):
    _, before = distilled
    after = {name: commit.open_committed(home / name, check="full").manifest.identity for name in before}
    assert after == before
    exported, teacher = load_towers(home / "run"), load_towers(home / "teacher")
    jax.tree.map(np.testing.assert_array_equal, exported.document.params, teacher.document.params)
    assert exported.identity("document") == encoder_identity(exported.document, "document")
    assert exported.identity("query") == encoder_identity(exported.query, "query")
    assert exported.contract.space == teacher.contract.space
    assert teacher.identity("query") in exported.contract.encoders


@pytest.mark.parametrize("part", ["vectors", "index"])
def test_the_student_searches_what_the_teacher_made_and_a_stranger_does_not(home, distilled, tmp_path, part):
    hits = Retriever.load(home / "run", mesh=MESH, **{part: home / part}).search(TEXTS[0], 5)
    query = encode_texts(load_towers(home / "run").query, TEXTS[:1], MESH).vectors[0]
    expected = np.sort(open_vectors(home / "vectors").read() @ query)[::-1][:5]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
    save_retriever(tmp_path / "stranger", small_retriever(seed=1))
    with pytest.raises(UsageError, match="does not speak the embedding space"):
        Retriever.load(tmp_path / "stranger", mesh=MESH, **{part: home / part})


def test_a_student_of_another_space_is_a_stranger(home, distilled, tmp_path):
    """Joining one space opens no other."""
    student = load_towers(home / "run")
    other = small_retriever(seed=1).contract
    forged = dataclasses.replace(student, contract=other.joined_by(student.identity("query")))
    save_retriever(tmp_path / "forged", forged)
    with pytest.raises(UsageError, match="does not speak the embedding space"):
        Retriever.load(tmp_path / "forged", mesh=MESH, vectors=home / "vectors")


class KilledError(Exception):
    pass


def test_a_run_that_broke_off_and_went_on_has_the_same_bits(home, tmp_path):
    flags = {"training": {"num_steps": 30}, "operation": {"checkpoint_every_steps": 10}}
    job = small_job(home, tmp_path / "whole", **flags)
    whole = train(job.objective(), job.training, job.operation, tmp_path / "whole")
    job = small_job(home, tmp_path / "broken", **flags)
    objective = job.objective()

    def breaks(number, rows=slice(None)):
        if number == 17:
            raise KilledError
        return type(objective).batch(objective, number, rows)

    object.__setattr__(objective, "batch", breaks)
    with pytest.raises(KilledError):
        train(objective, job.training, job.operation, tmp_path / "broken")
    made = (tmp_path / "broken.teacher-queries" / "MANIFEST.json").stat().st_mtime_ns
    resumed = train(job.objective(), job.training, job.operation, tmp_path / "broken")
    assert resumed.state_hash == whole.state_hash
    assert (tmp_path / "broken.teacher-queries" / "MANIFEST.json").stat().st_mtime_ns == made


@pytest.mark.slow
def test_losses_on_a_mesh_are_those_of_one_device(home, tmp_path):
    """With InfoNCE, whose queries meet the documents of all devices."""
    job = small_job(home, tmp_path / "run", loss={"contrastive": 0.5})
    objective = job.objective()
    alone, spread = (runs.losses(objective, job.training, mesh, 3) for mesh in ("data=1", "data=2,fsdp=2,tensor=2"))
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


def test_refinement_finds_the_documents_and_stays_in_the_space(home, distilled, tmp_path):
    refined = small_job(
        home,
        tmp_path / "refined",
        loss={"squared_error": 0.0, "cosine": 0.0, "contrastive": 1.0},
        training={"num_steps": 30},
        operation={"best_metric": "nDCG@10"},
    ).starting_from(str(home / "run"))
    result = train(refined.objective(), refined.training, refined.operation, tmp_path / "refined")
    rows = read_metrics(tmp_path / "refined")
    losses = [row["contrastive"] for row in rows if "contrastive" in row]
    assert losses[-1] < 0.8 * losses[0]
    before = next(row["dev/nDCG@10"] for row in rows if row["step"] == 0)
    assert result.best.value > before + 0.05
    Retriever.load(tmp_path / "refined", mesh=MESH, index=home / "index")


def test_the_teachers_ranking_of_frozen_documents_is_learned(home, tmp_path):
    weights = {"squared_error": 0.0, "cosine": 0.0, "ranking": 1.0}
    job = small_job(home, tmp_path / "run", loss=weights)
    train(job.objective(), job.training, job.operation, tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run") if "ranking" in row]
    assert rows[-1]["ranking"] < 0.5 * rows[0]["ranking"]
    assert all(row["loss"] == row["ranking"] for row in rows)


def test_an_index_that_changed_since_is_another_run(home, distilled, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copytree(home / "run.teacher-queries", tmp_path / "run.teacher-queries")
    job = small_job(home, tmp_path / "run", teacher={"vectors": "", "index": str(home / "index")})
    with pytest.raises(UsageError, match=r"holds the run of another job(.|\n)*teacher\.documents\.index"):
        train(job.objective(), job.training, job.operation, tmp_path / "run")
