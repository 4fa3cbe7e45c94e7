import errno
from pathlib import Path

import pytest

from jaxscale.errors import MachineError
from jaxscale.store import disk


def test_require_free_names_both_figures(tmp_path: Path) -> None:
    disk.require_free(tmp_path / "not" / "there", 1, "a checkpoint")
    with pytest.raises(MachineError, match=r"needs 1,000,000,000,000,000,000 bytes and .* has [\d,]+ free"):
        disk.require_free(tmp_path, 10**18, "a checkpoint")


def test_exchange_swaps_two_directories(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    if not disk.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system can't exchange two names")
    assert (tmp_path / "a" / "f").read_text() == "b"
    assert (tmp_path / "b" / "f").read_text() == "a"


def test_exchange_reports_a_missing_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="No such") as caught:
        disk.exchange(tmp_path / "a", tmp_path / "b")
    assert caught.value.errno == errno.ENOENT


def test_make_directories_fsyncs_every_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk, "fsync", synced.append)
    disk.make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path, tmp_path / "a"]
