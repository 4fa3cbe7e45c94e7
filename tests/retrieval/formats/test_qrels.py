"""Judgements of either kind are told apart."""

from pathlib import Path

import pytest

from jaxscale.errors import DataError
from retrieval.formats.qrels import read_qrels


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq 1\td\t2\n",
        "q 1\td\t2\n",
        "\nq 1\td\t2\n",
    ],
)
def test_beir(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    assert read_qrels(tmp_path / "x") == {"q 1": {"d": 2}}


@pytest.mark.parametrize("text", ["q 0 d 2\n", "q\t0\td\t2\r\n"])
def test_trec(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    assert read_qrels(tmp_path / "x") == {"q": {"d": 2}}


def test_neither(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("q Q0 d 1 2.0 tag\n")
    with pytest.raises(DataError, match="x:1: got 6 columns, expected 4"):
        read_qrels(tmp_path / "x")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert read_qrels(tmp_path / "x") == {}
