"""The verb corpus pydocs: a folder, its numbers, its refusals."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from retrieval.corpora import pydocs
from retrieval.formats.beir import BeirFolder


def test_makes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report_file = tmp_path / "corpus", tmp_path / "report.json"
    words = ["corpus", "pydocs", "--out", str(out), "--packages", "optax", "no_such_package"]
    assert main([*words, "--json", str(report_file)]) == 0
    folder, report = BeirFolder.open(out, check="full"), json.loads(report_file.read_text())
    assert report["identity"] == folder.identity
    assert report["num_docs"] == folder.num_docs > 100
    assert sum(report["num_queries"].values()) == folder.num_queries
    assert report["absent"] == ["no_such_package"]
    assert "not installed: no_such_package" in capsys.readouterr().out

    assert main([*words, "--replace"]) == 0


def test_refuses_a_place_that_is_taken_before_it_reads_a_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("mine")

    def build(config: pydocs.PydocsConfig) -> pydocs.Pydocs:
        raise AssertionError("the corpus was built for a place that is taken")

    monkeypatch.setattr(pydocs, "build", build)
    for more in ([], ["--replace"]):
        assert main(["corpus", "pydocs", "--out", str(tmp_path), *more]) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert "exists already" in refusals[0]
    assert "is not a committed directory and is not replaced" in refusals[1]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_refuses_packages_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "pydocs", "--out", str(tmp_path / "c"), "--packages", "no_such_package"]) == 3
    assert "none of the packages no_such_package is installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
