import json
from pathlib import Path

import pytest

from jaxscale.errors import DataError
from jaxscale.store import commit
from jaxscale.store.verify import verify
from launch.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("run/a", "run/deep/b"):
        with commit.draft(tmp_path / name, format="test", version=1) as draft:
            (draft.path / "f.txt").write_text(name)
    (tmp_path / "run/metrics.jsonl").write_text("{}\n")
    (tmp_path / "run/a.tmp-01234567").mkdir()
    return tmp_path / "run"


def test_finds_everything_committed(folder: Path) -> None:
    found = verify(folder)
    assert [(r.path, r.format, r.num_files, r.num_bytes) for r in found.directories] == [
        (folder / "a", "test", 1, 5),
        (folder / "deep/b", "test", 1, 10),
    ]
    assert found.damages == ()
    assert found.num_uncovered_files == 1
    assert found.leftovers == (folder / "a.tmp-01234567",)
    assert [r.path for r in verify(folder / "a").directories] == [folder / "a"]


def test_a_step_without_its_manifest_is_damage(tmp_path: Path) -> None:
    (tmp_path / "c/step_00000010").mkdir(parents=True)
    assert [d.file for d in verify(tmp_path).damages] == [tmp_path / "c/step_00000010/MANIFEST.json"]


def test_nothing_committed_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing committed"):
        verify(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        verify(tmp_path / "x")


def test_the_verb_says_how_far_it_looked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "2 committed, 2 files, 15 bytes: every byte checked" in capsys.readouterr().out
    assert main(["verify", str(folder), "--check", "sizes"]) == 0
    assert "unverified" in capsys.readouterr().out


def test_the_verb_names_each_damaged_file_and_exits_5(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a/f.txt").write_text("xxxxx")
    (folder / "deep/b/f.txt").unlink()
    report_file = tmp_path / "report.json"
    assert main(["verify", str(folder), "--json", str(report_file)]) == 5
    error = capsys.readouterr().err
    damaged = {damage["file"] for damage in json.loads(report_file.read_text())["damages"]}
    assert damaged == {f"{folder}/a/f.txt", f"{folder}/deep/b/f.txt"}
    assert f"{folder}/a/f.txt: has other bytes" in error
    assert f"{folder}/deep/b/f.txt: is missing" in error
    assert main(["verify", str(folder / "a"), "--check", "sizes"]) == 0


def test_the_verb_exits_3_where_nothing_is_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 3
    assert main(["verify", str(tmp_path / "x")]) == 3
    assert "is not there" in capsys.readouterr().err


def test_the_verb_refuses_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").touch()
    assert main(["verify", str(tmp_path / "f")]) == 3
    assert "is a file; name the folder" in capsys.readouterr().err
