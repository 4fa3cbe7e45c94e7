import os
from pathlib import Path

import pytest

from jaxscale.errors import DataError, MachineError, UsageError, VerificationError
from jaxscale.store import commit, disk, failpoints
from jaxscale.store.failpoints import FailpointReached
from jaxscale.store.lock import WriterLock


def write(path: Path, content: str, **options: bool) -> commit.Committed:
    with commit.draft(path, format="test", version=1, **options) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "a.txt").write_text(content)
        draft.counts["rows"] = 3
        draft.config = {"content": content}
    assert draft.committed is not None
    return draft.committed


def content_of(path: Path) -> str:
    commit.open_committed(path, format="test", check="full")
    return (path / "sub" / "a.txt").read_text()


def test_commits_and_opens(tmp_path: Path) -> None:
    written = write(tmp_path / "deep" / "x", "one")
    found = commit.open_committed(tmp_path / "deep" / "x", format="test", version=1)
    assert found.manifest == written.manifest
    assert found.manifest.counts == {"rows": 3}
    assert not found.verified
    assert commit.open_committed(tmp_path / "deep" / "x", check="full").verified
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]


def test_the_same_content_has_the_same_bytes_and_identity(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / name, content) for name, content in (("a", "one"), ("b", "one"), ("c", "two")))
    assert a.manifest.identity == b.manifest.identity != c.manifest.identity
    assert (a.path / "MANIFEST.json").read_bytes() == (b.path / "MANIFEST.json").read_bytes()


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with commit.draft(tmp_path / "x", format="test", version=1) as draft:
            (draft.path / "f").write_text("half")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_everything_is_durable_before_the_rename_and_the_rename_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write(tmp_path / "x", "one")
    draft = next(event for event in events if event.startswith("x.tmp-"))
    assert events == ["a.txt", "sub", draft, "MANIFEST.json", draft, "rename", tmp_path.name]


def test_an_existing_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    with pytest.raises(UsageError, match="exists already"):
        write(tmp_path / "x", "two")
    assert content_of(tmp_path / "x") == "one"


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(UsageError, match=r"file is no folder"):
            write(place, "one")
        with pytest.raises(UsageError, match=r"file is no folder"):
            commit.check_place(place, format="test", replace=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_where_nothing_can_be_made_is_the_machine_s_fault() -> None:
    with pytest.raises(MachineError, match=r"/proc/x can't be written"):
        write(Path("/proc/x"), "one")


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", "one")
    assert content_of(tmp_path / "x") == "one"


@pytest.mark.parametrize("exchange", [True, False])
def test_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(disk, "exchange", lambda *_: False)
    write(tmp_path / "x", "one")
    write(tmp_path / "x", "two", replace=True)
    assert content_of(tmp_path / "x") == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_replaces_only_its_own_kind(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("data")
    with pytest.raises(UsageError, match="not a committed directory"):
        write(tmp_path / "mine", "two", replace=True)
    with commit.draft(tmp_path / "other", format="other", version=1):
        pass
    with pytest.raises(UsageError, match="holds other"):
        write(tmp_path / "other", "two", replace=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "other"]


def test_a_reader_ends_a_replacement_that_was_cut(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    os.rename(tmp_path / "x", tmp_path / "x.old-01234567")
    assert content_of(tmp_path / "x") == "one"


def test_a_writer_ends_a_replacement_that_was_cut(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    os.rename(tmp_path / "x", tmp_path / "x.old-01234567")
    with pytest.raises(UsageError, match="exists already"):
        write(tmp_path / "x", "two")
    assert content_of(tmp_path / "x") == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_the_dead_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("x.tmp-01234567", "x.tmp-mine", "y.tmp-01234567", "x.tmp-01234567.txt"):
        (tmp_path / name).mkdir()
    write(tmp_path / "x", "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.tmp-01234567.txt", "x.tmp-mine", "y.tmp-01234567"]


def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    with commit.draft(tmp_path / "x", format="test", version=1) as draft:
        (draft.path / "f").write_text("half")
        with pytest.raises(MachineError, match="being written"):
            write(tmp_path / "x", "two")
        commit.clean(tmp_path / "x")
        assert draft.path.is_dir()
    assert commit.open_committed(tmp_path / "x", check="full").manifest.files.keys() == {"f"}


def test_a_resumable_draft_survives_and_goes_on(tmp_path: Path) -> None:
    def fail() -> None:
        with commit.draft(tmp_path / "x", format="test", version=1, resumable=True) as draft:
            write(draft.path / "shard-0", "zero")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    with commit.draft(tmp_path / "x", format="test", version=1, resumable=True) as draft:
        assert content_of(draft.path / "shard-0") == "zero"
        write(draft.path / "shard-1", "one")
    assert content_of(tmp_path / "x" / "shard-1") == "one"
    assert "shard-0/MANIFEST.json" in commit.open_committed(tmp_path / "x", check="full").manifest.files
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_is_not_committed_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no committed directory"):
        commit.open_committed(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"has no MANIFEST\.json"):
        commit.open_committed(tmp_path)
    write(tmp_path / "x", "one")
    with pytest.raises(DataError, match="holds test, expected other"):
        commit.open_committed(tmp_path / "x", format="other")
    with pytest.raises(DataError, match="newer jaxscale"):
        commit.open_committed(tmp_path / "x", version=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.write_text("two"), r"a\.txt: has other bytes"),
        (lambda f: f.write_text("longer"), r"a\.txt: has 6 bytes, expected 3"),
        (lambda f: f.write_text(""), r"a\.txt: has 0 bytes, expected 3"),
        (lambda f: f.unlink(), r"a\.txt: is missing"),
        (lambda f: f.with_name("extra").write_text(""), r"extra: is not in the manifest"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str) -> None:
    path = write(tmp_path / "x", "one").path
    damage(path / "sub" / "a.txt")
    with pytest.raises(VerificationError, match=message):
        commit.open_committed(path, check="full")
    if "other bytes" not in message:
        with pytest.raises(VerificationError, match=message):
            commit.open_committed(path, check="sizes")


@pytest.mark.parametrize("action", ["raise", "enospc"])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    "place", ["before_fsync", "after_fsync", "before_manifest", "manifest_written", "before_rename", "after_rename"]
)
def test_a_failure_anywhere_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, replace: bool, action: str
) -> None:
    if replace:
        write(tmp_path / "x", "one")
    monkeypatch.setenv(failpoints.VARIABLE, f"commit.{place}:{action}")
    with pytest.raises(FailpointReached if action == "raise" else MachineError):
        write(tmp_path / "x", "two", replace=replace)
    if place == "after_rename":
        assert content_of(tmp_path / "x") == "two"
    elif replace:
        assert content_of(tmp_path / "x") == "one"
    if place != "after_rename":
        assert [p.name for p in tmp_path.iterdir()] == ["x"] * replace
    monkeypatch.delenv(failpoints.VARIABLE)
    write(tmp_path / "x", "three", replace=True)
    assert content_of(tmp_path / "x") == "three"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_remove(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    with WriterLock(tmp_path / "x"), pytest.raises(MachineError):
        commit.remove(tmp_path / "x")
    commit.remove(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
