import errno
from pathlib import Path

import pytest

from jaxscale.errors import UsageError
from jaxscale.store import failpoints
from jaxscale.store.failpoints import FailpointReached, failpoint


def test_does_nothing_unless_asked() -> None:
    failpoint("commit.before_rename")


def test_acts_at_the_nth_pass_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "a.b:raise@3")
    failpoint("a.b")
    failpoint("a.other")
    failpoint("a.b")
    with pytest.raises(FailpointReached, match=r"a\.b"):
        failpoint("a.b")
    failpoint("a.b")


def test_runs_out_of_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "a.b:enospc")
    with pytest.raises(OSError, match="No space") as caught:
        failpoint("a.b")
    assert caught.value.errno == errno.ENOSPC


def test_refuses_what_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "a.b:explode")
    with pytest.raises(UsageError, match="explode"):
        failpoint("a.b")


def test_finds_every_name_in_the_source() -> None:
    names = failpoints.names_in(Path(failpoints.__file__).parent)
    assert "commit.before_rename" in names
    assert "checkpoints.before_remove" in names
    assert len(names) >= 15
