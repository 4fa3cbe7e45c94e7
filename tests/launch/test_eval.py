"""The verb eval: its table, its JSON, its refusals and their exit codes."""

import json
from pathlib import Path

import pytest

from launch.cli import main
from retrieval.formats.trec import write_qrels, write_run

QRELS = {f"q{i}": {"a": 1} for i in range(20)}
GOOD = {f"q{i}": {"a": 2.0, "b": 1.0} for i in range(19)} | {"stray": {"a": 1.0}}
BAD = {f"q{i}": {"a": 1.0, "b": 2.0} for i in range(20)}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_run(tmp_path / "good.trec", GOOD, "good")
    write_run(tmp_path / "bad.trec", BAD, "bad")
    write_qrels(tmp_path / "qrels", QRELS)
    rows = "".join(f"{q}\ta\t1\n" for q in QRELS)
    (tmp_path / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return tmp_path


@pytest.mark.parametrize("qrels", ["qrels", "test.tsv"])
def test_measures_a_run(files: Path, qrels: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--run", str(files / "good.trec"), "--qrels", str(files / qrels)]
    assert main([*words, "--json", str(files / "out.json"), "--measures", "RR@10", "p@1"]) == 0
    report = json.loads((files / "out.json").read_text())
    assert (report["num_queries"], report["num_missing"], report["num_not_judged"]) == (20, 1, 1)
    assert list(report["measures"]) == ["RR@10", "P@1"]
    row = report["measures"]["RR@10"]
    assert row["mean"] == pytest.approx(19 / 20)
    assert row["low"] <= row["mean"] <= row["high"]
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["measure", "mean", "low", "high"]
    assert out.splitlines()[1].split()[:2] == ["RR@10", "0.9500"]
    assert "1 of them missing" in out


def test_compares_with_another_run(files: Path) -> None:
    words = ["eval", "--run", str(files / "good.trec"), "--against", str(files / "bad.trec")]
    assert main([*words, "--qrels", str(files / "qrels"), "--measures", "RR", "--json", str(files / "out.json")]) == 0
    row = json.loads((files / "out.json").read_text())["measures"]["RR"]
    assert row["against"] == pytest.approx(0.5)
    assert row["difference"] == pytest.approx(0.45)
    assert 0 < row["p"] < 0.001


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["--run", "none", "--qrels", "qrels"], 3, "none: can't be read: No such file"),
        (["--run", "nan", "--qrels", "qrels"], 3, "nan:1: score 'nan' is not finite"),
        (["--run", "good.trec", "--qrels", "good.trec"], 3, "good.trec:1: got 6 columns, expected 4"),
        (["--run", "good.trec", "--qrels", "empty"], 3, "no judgements"),
        (["--run", "good.trec", "--qrels", "qrels", "--measures", "NDGC@10"], 2, "unknown measure 'NDGC@10'"),
        (["--run", "good.trec", "--qrels", "qrels", "--level", "95"], 2, "level=95.0 must lie between 0 and 1"),
        (["--run", "good.trec", "--qrels", "qrels", "--num-samples", "0"], 2, "num_samples=0 must be at least 1"),
    ],
)
def test_refusals(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    exit_code: int,
    message: str,
) -> None:
    monkeypatch.chdir(files)
    Path("nan").write_text("q Q0 a 1 nan t\n")
    Path("empty").touch()
    assert main(["eval", *words]) == exit_code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
