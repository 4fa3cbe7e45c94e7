"""A run folder is one job's and one process's, and its job.json is what it says."""

import json
from pathlib import Path

import pytest

from jaxscale.errors import DataError, MachineError, UsageError
from jaxscale.train.run_folder import RunFolder, read_job

IDENTITY = {"training": {"num_steps": 3, "seed": 1}}


def claim(path, operation=None):
    with RunFolder(path) as folder:
        job, changes = folder.claim(IDENTITY, operation or {"mesh": ""}, None)
        folder.write_job(job)
        return job, changes


def test_a_claim_is_repeated_with_its_changes_of_operation(tmp_path):
    assert claim(tmp_path / "run")[1] == []
    job, changes = claim(tmp_path / "run", {"mesh": "data=2"})
    assert [str(c) for c in changes] == ['operation.mesh: "" -> "data=2"']
    assert read_job(tmp_path / "run") == job
    assert job.identity == IDENTITY


def test_two_at_once_are_refused(tmp_path):
    with RunFolder(tmp_path / "run"), pytest.raises(MachineError, match="pid"):
        RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run").close()


def test_a_file_and_a_strangers_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"not empty \(a.txt\)"):
        RunFolder(tmp_path / "other")


def test_a_place_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is no folder"):
        RunFolder(tmp_path / "file/run")
    with pytest.raises(MachineError, match="can't be written"):
        RunFolder(Path("/proc/jaxscale/run"))


def test_an_empty_folder_or_one_with_a_torn_draft_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.job.json.tmp").write_text('{"form')
    claim(tmp_path / "run")
    assert read_job(tmp_path / "run").identity == IDENTITY


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda job: job["identity"]["training"].update(seed=2), "changed by hand"),
        (lambda job: job.update(version=2), "version 2, expected jaxscale.run version 1"),
        (lambda job: job.pop("operation"), "missing operation"),
        (lambda job: job.update(more=1), "unknown more"),
    ],
)
def test_a_job_file_that_is_not_what_it_says_is_refused(tmp_path, damage, message):
    claim(tmp_path / "run")
    job = json.loads((tmp_path / "run/job.json").read_text())
    damage(job)
    (tmp_path / "run/job.json").write_text(json.dumps(job))
    with pytest.raises(DataError, match=message):
        claim(tmp_path / "run")


def test_a_run_is_finished_at_its_length_and_with_its_model(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_job(folder.claim(IDENTITY, {}, None)[0])
        folder.events.write("finished", step=3, state_hash="ab", best=None)
        assert folder.finished(3) is None
        folder.model.mkdir()
        assert folder.finished(3)["state_hash"] == "ab"
        assert folder.finished(4) is None
