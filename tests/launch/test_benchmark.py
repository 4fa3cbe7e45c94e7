"""`jaxscale benchmark`: its tables, its report, and a rival that is a retriever or an earlier benchmark."""

import json

import pytest

from launch.cli import main
from retrieval.formats.trec import read_run
from tests.retrieval.tiny_retriever import write_corpus, write_retriever

WORDS = ("--depth", "20", "--measures", "nDCG@10", "r@20", "--mesh", "data=1@0")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "small", num_docs=30)
    write_corpus(home / "large", num_docs=40, seed=1)
    write_retriever(home / "model")
    write_retriever(home / "imported", seed=1)
    data = ("--data", home / "small", home / "large")
    assert run("benchmark", "--model", home / "imported", *data, "--out", home / "before", *WORDS) == 0
    return home


def test_two_retrievers_on_two_folders_in_one_command(home, capsys):
    words = ("benchmark", "--model", home / "model", "--data", home / "small", home / "large", "--out", home / "after")
    assert run(*words, *WORDS, "--against", home / "before", "--json", home / "report.json") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in shown if line and line[0] in ("small:", "large:", "mean")] == [
        "small:",
        "large:",
        "mean",
    ]
    assert sum(line[:2] == ["dense,", "before"] for line in shown) == 3
    assert sum(line[:3] == ["hybrid", "-", "before"] for line in shown) == 3
    assert shown[2] == ["nDCG@10", "R@20"]
    report = json.loads((home / "report.json").read_text())
    assert report["measures"] == ["nDCG@10", "R@20"]
    assert report["against"] == str(home / "before")
    kept = json.loads((home / "after" / "results" / "results.json").read_text())
    assert {"out": str(home / "after"), **kept} == report
    row = next(line for line in shown if line[:3] == ["dense", "-", "before"])
    difference = report["folders"][0]["figures"]["differences"][2]
    assert (difference["system"], difference["against"]) == ("dense", "dense_before")
    assert row[3:5] == [f"{difference['difference']['mean']:+.3f}", f"p={difference['p']:.4f}"]
    assert len(read_run(home / "after" / "runs" / "large" / "hybrid.trec")) == 6
    assert not (home / "after" / "parts").exists()


def test_its_own_folder_is_no_earlier_one(home, capsys):
    words = ("benchmark", "--model", home / "imported", "--data", home / "small", "--out", home / "before", *WORDS)
    assert run(*words, "--against", home / "before") == 2
    assert "is the folder of this benchmark" in capsys.readouterr().err


def test_every_folder_is_looked_at_before_one_is_searched(home, tmp_path, capsys):
    words = ("benchmark", "--model", home / "model", "--out", tmp_path / "out", *WORDS)
    assert run(*words, "--data", home / "small", tmp_path / "none") == 3
    assert "there is no such folder" in capsys.readouterr().err
    assert run(*words, "--data", home / "small", "--split", "natural") == 3
    assert "has no split 'natural'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
