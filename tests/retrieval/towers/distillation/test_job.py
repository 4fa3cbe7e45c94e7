"""Jobs of distillation: strict JSON, checks before anything is read, an identity of hashes and not of paths."""

import dataclasses
import json
import shutil

import pytest

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from retrieval.towers.distillation.job import DistillationJob
from tests.retrieval.towers.distillation.small_distillation import small_job, write_home


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
        ({"loss": {"contrastive": 0.1}, "training": {"global_batch_size": 1}}, "has no negatives; use at least 2"),
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
