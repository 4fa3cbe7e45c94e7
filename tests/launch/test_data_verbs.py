"""The verbs data train-tokenizer and data stats: files, numbers counted by hand, refusals."""

import json

import numpy as np
import pytest

from jaxscale.data.documents import find_files
from jaxscale.data.token_writer import tokenization, write_dataset
from jaxscale.data.tokenizer import Tokenizer
from launch.cli import main

TEXTS = ["the cat sat on the mat", "the dog", "one two three four five six seven eight nine ten"] * 4


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.txt").write_text("the mat and the log")
    return folder


def test_trains_the_same_tokenizer_each_time_and_it_keeps_every_text(corpus, tmp_path, capsys):
    made = []
    for name in ("one", "two"):
        out, report = tmp_path / name / "tokenizer.json", tmp_path / "report.json"
        line = ["data", "train-tokenizer", "--input", str(corpus), "--out", str(out), "--vocab-size", "300"]
        assert main([*line, "--json", str(report)]) == 0
        made.append((out.read_bytes(), json.loads(report.read_text())))
    assert made[0][0] == made[1][0]
    tokenizer, report = Tokenizer.load(out), made[1][1]
    assert report["fingerprint"] == tokenizer.fingerprint
    assert report["num_documents"] == len(TEXTS) + 1
    assert report["num_bytes"] == sum(map(len, TEXTS)) + len("the mat and the log")
    for text in ["the cat", " \n\tZażółć gęślą 蛇\x00🐍  "]:
        assert tokenizer.decode(tokenizer.encode_batch([text], 1000).ids[0]) == text
    assert report["fingerprint"] in capsys.readouterr().out


def test_reads_the_beginning_of_each_file(corpus, tmp_path):
    report = tmp_path / "report.json"
    line = ["data", "train-tokenizer", "--input", str(corpus), "--out", str(tmp_path / "t.json"), "--vocab-size", "270"]
    assert main([*line, "--max-documents-per-file", "2", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["num_documents"] == 3


def test_a_line_that_is_not_json_is_named_and_nothing_is_written(corpus, tmp_path, capsys):
    bad = corpus / "c.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": \n')
    out = tmp_path / "t.json"
    assert main(["data", "train-tokenizer", "--input", str(corpus), "--out", str(out)]) == 3
    assert f"{bad}:2: not JSON" in capsys.readouterr().err
    assert not out.exists()


def test_a_file_that_is_there_is_kept_unless_it_may_be_replaced(corpus, tmp_path, capsys):
    out = tmp_path / "t.json"
    out.write_text("mine")
    line = ["data", "train-tokenizer", "--input", str(corpus), "--out", str(out), "--vocab-size", "270"]
    assert main(line) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*line, "--replace"]) == 0
    assert Tokenizer.load(out).vocab_size == 270


def test_stats_are_those_counted_by_hand(corpus, tmp_path, capsys):
    tokenizer = Tokenizer.train_bpe(TEXTS, 300)
    how = tokenization(tokenizer, pack_lengths=[16, 8])
    dataset = write_dataset(tmp_path / "tokens", find_files([corpus]), tokenizer, how)
    report = tmp_path / "report.json"
    folder = str(dataset.path)
    assert main(["data", "stats", folder, "--vocabulary", "--check", "full", "--json", str(report)]) == 0
    (stats,) = json.loads(report.read_text())["datasets"]

    end = tokenizer.token_id("</s>")
    rows = [[*ids.tolist(), end] for ids in tokenizer.encode_batch([*TEXTS, "the mat and the log"], 1000).ids]
    lengths = sorted(map(len, rows))
    assert stats["num_tokens"] == sum(lengths)
    assert stats["num_documents"] == len(lengths) == 13
    for share, length in stats["document_tokens_quantiles"].items():
        # Enough documents are no longer than it, and fewer would be with one token less.
        assert sum(one <= length for one in lengths) >= float(share) * 13 > sum(one < length for one in lengths)
    for rows_of in stats["rows"]:
        assert rows_of["fill"] == pytest.approx(sum(lengths) / (rows_of["num_rows"] * rows_of["sequence_length"]))
    assert [rows_of["sequence_length"] for rows_of in stats["rows"]] == [8, 16]
    counts = np.bincount(np.concatenate(rows))
    shares = counts[counts > 0] / counts.sum()
    assert stats["vocabulary"]["num_used"] == len(shares)
    assert stats["vocabulary"]["entropy_bits"] == pytest.approx(-sum(share * np.log2(share) for share in shares))
    assert "unverified" not in capsys.readouterr().out
    assert main(["data", "stats", folder, folder]) == 0
    shown = capsys.readouterr().out
    assert "unverified" in shown
    assert f"together: {2 * sum(lengths):,} tokens" in shown


def test_a_damaged_dataset_is_named(corpus, tmp_path, capsys):
    tokenizer = Tokenizer.train_bpe(TEXTS, 300)
    how = tokenization(tokenizer, pack_lengths=[8])
    folder = write_dataset(tmp_path / "tokens", find_files([corpus]), tokenizer, how).path
    tokens = next(folder.rglob("*.tokens"))
    content = bytearray(tokens.read_bytes())
    content[10] ^= 1
    tokens.write_bytes(content)
    assert main(["data", "stats", str(folder), "--check", "full"]) == 5
    assert tokens.name in capsys.readouterr().err
