"""Jobs of distillation: strict JSON, checks before anything is read, an identity of hashes and not of paths."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec
from retrieval.embed import embed_corpus
from retrieval.formats.beir import BeirFolder, write_beir
from retrieval.records import Doc
from retrieval.towers.distillation.job import DistillationJob
from retrieval.vectors import Vectors
from tests.retrieval.towers.distillation.small_distillation import MESH, small_job, small_retriever, write_home
from tests.retrieval.towers.small_pairs import made_up_records


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


def test_json_round_trip(tmp_path):
    job = small_job(tmp_path, tmp_path / "run")
    assert typed_json.decode(DistillationJob, json.loads(json.dumps(typed_json.encode(job)))) == job


def test_the_teachers_vectors_are_beside_the_run_unless_they_have_a_place(tmp_path):
    job = small_job(tmp_path, tmp_path / "run")
    assert job.teacher.query_vectors == str(tmp_path / "run.teacher-queries")
    assert job.beside(tmp_path / "other") == job


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"folder": ""}}, "data.folder is not given; add `--data.folder DIR`"),
        ({"teacher": {"retriever": ""}}, "teacher.retriever is not given; add `--teacher.retriever DIR`"),
        ({"student": {"num_layers": None}}, "the student has nothing to start from"),
        ({"loss": {"contrastive": 0.1}, "teacher": {"vectors": ""}}, "needs the documents' frozen vectors"),
        (
            {"loss": {"ranking": 0.1}, "teacher": {"vectors": ""}},
            "loss.ranking=0.1 needs the documents' frozen vectors",
        ),
        (
            {"loss": {"contrastive": 0.1}, "training": {"global_batch_size": 1}},
            "meets 1 document, which teaches nothing",
        ),
        ({"teacher": {"vectors": ""}, "operation": {"best_metric": "nDCG@10"}}, "must be one of cosine, or empty"),
        ({"data": {"num_dev_queries": 4}}, "best_metric='cosine' must be one of sample_cosine, sample_nDCG@10"),
        ({"training": {"global_batch_size": 16, "grad_accum": 16}}, "must be divisible by"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_read(tmp_path, changes, said):
    with pytest.raises(UsageError) as refusal:
        small_job(tmp_path / "nowhere", tmp_path / "run", **changes).check(MeshSpec(data=2))
    assert said in str(refusal.value)


def test_a_whole_job_passes_the_checks(tmp_path):
    small_job(tmp_path / "nowhere", tmp_path / "run").check(MeshSpec(data=8))


def test_a_folder_to_start_from_takes_the_place_of_the_teachers_layers(tmp_path):
    job = small_job(tmp_path, tmp_path / "run", student={"layer_step": 2}).starting_from("model")
    assert (job.student.init_from, job.student.num_layers, job.student.layer_step) == ("model", None, 1)
    job.check(MeshSpec(data=1))


def test_the_identity_names_contents_and_not_paths(home, tmp_path):
    shutil.copytree(home, tmp_path / "moved")
    ours = small_job(home, tmp_path / "a").objective().identity
    moved = small_job(tmp_path / "moved", tmp_path / "b").objective().identity
    assert moved == ours
    assert str(home) not in json.dumps(ours)
    shorter = small_job(home, tmp_path / "a", data={"query_buckets": (8,)}).objective().identity
    assert shorter["student"]["encoder"] != ours["student"]["encoder"]


def test_without_a_place_for_the_teachers_vectors_there_is_no_objective(home, tmp_path):
    job = small_job(home, tmp_path / "run")
    job = dataclasses.replace(job, teacher=dataclasses.replace(job.teacher, query_vectors=""))
    with pytest.raises(UsageError, match=r"teacher\.query_vectors is not given"):
        job.objective()


def test_a_run_in_the_folder_that_one_stands_in_has_a_place_beside_it_too(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert small_job(tmp_path, Path()).teacher.query_vectors == str(tmp_path / "run.teacher-queries")


def test_documents_of_which_no_dev_query_finds_one_are_refused(home, tmp_path):
    docs, queries, _ = made_up_records()
    strangers = [Doc(f"x{number}", "", doc.text) for number, doc in enumerate(docs)]
    write_beir(tmp_path / "other", strangers, queries, {"train": {queries[0].id: {"x0": 1}}})
    embed_corpus(small_retriever(), BeirFolder.open(tmp_path / "other"), tmp_path / "vectors", MESH)
    job = small_job(home, tmp_path / "run", teacher={"vectors": str(tmp_path / "vectors")})
    with pytest.raises(DataError, match=r"none of its 96 documents is relevant to a query of data\.dev_split"):
        job.objective()


def test_the_frozen_vectors_are_read_once_for_all_evaluations(home, tmp_path, monkeypatch):
    objective = small_job(home, tmp_path / "run").objective()
    read = []
    monkeypatch.setattr(Vectors, "read", lambda self, whole=Vectors.read: read.append(self) or whole(self))
    dev, student = objective.dev, objective.student
    first, second = (dev.evaluate(student.config, student.params, MESH, "float32") for _ in range(2))
    assert first == second
    assert len(read) == 1
