"""Finding installed sources: nothing is imported, tests are skipped, the order is fixed."""

import sys
from pathlib import Path

import pytest

from jaxscale.errors import DataError
from retrieval.corpora.sources import STANDARD_LIBRARY, DistributionSources, is_installed

FILES = {
    "__init__.py": '"""Doc."""\nraise RuntimeError("was imported")',
    "b.py": "def f(): pass",
    "a.py": "",
    "sub/__init__.py": "",
    "sub/deep.py": "def g(): pass",
    "broken.py": "def (",
    "latin.py": b"# \xe9",
    "data/notes.txt": "x",
    "tests/test_x.py": "def hidden(): pass",
    "_vendor/x.py": "",
    "test_util.py": "",
    "conftest.py": "",
    "not-a-name/x.py": "",
    "_add_newdocs.py": "add_newdoc('fakedist.b', 'in_c', 'Written by hand. It has a longer body than most.')",
}


@pytest.fixture
def fakedist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DistributionSources:
    for name, content in FILES.items():
        path = tmp_path / "fakedist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.syspath_prepend(tmp_path)
    return DistributionSources("fakedist")


def test_finds_modules_in_order_without_importing(fakedist: DistributionSources) -> None:
    names = "fakedist fakedist._add_newdocs fakedist.a fakedist.b fakedist.broken fakedist.latin fakedist.sub"
    assert list(fakedist) == [*names.split(), "fakedist.sub.deep"]
    assert "fakedist.b" in fakedist
    assert "fakedist.tests.test_x" not in fakedist
    assert fakedist["fakedist.sub.deep"].names == {"g"}
    assert fakedist["fakedist.sub"].is_package
    assert "fakedist" not in sys.modules


def test_docs_of_c_code_are_given_to_their_module(fakedist: DistributionSources) -> None:
    module = fakedist["fakedist.b"]
    assert module.names == {"f", "in_c"}
    assert [(d.name, d.summary) for d in module.documented] == [("in_c", "Written by hand.")]


def test_what_cant_be_read_is_empty_and_told(fakedist: DistributionSources) -> None:
    assert [fakedist[name].documented for name in ("fakedist.broken", "fakedist.latin")] == [(), ()]
    assert fakedist.unreadable == ["fakedist.broken", "fakedist.latin"]


def test_a_single_file_is_a_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onefile.py").write_text("def f(): pass")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(DistributionSources("onefile")) == ["onefile"]


def test_the_standard_library_is_itself_only() -> None:
    modules = set(DistributionSources(STANDARD_LIBRARY))
    assert {"json", "json.decoder", "textwrap", "asyncio.tasks", "_pydecimal"} <= modules
    assert not {name for name in modules if name.split(".")[0] in {"numpy", "pytest", "test", "idlelib", "distutils"}}


def test_what_is_not_installed() -> None:
    assert is_installed("numpy")
    assert is_installed(STANDARD_LIBRARY)
    assert not is_installed("no_such_package_anywhere")
    with pytest.raises(DataError, match="'no_such_package_anywhere' is not installed"):
        DistributionSources("no_such_package_anywhere")


def test_a_package_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hollow").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="'hollow' has no Python source files"):
        DistributionSources("hollow")
