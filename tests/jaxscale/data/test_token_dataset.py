"""Token datasets: what is written is what the tokenizer says, once, whoever is killed on the way."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxscale.data import token_writer
from jaxscale.data.documents import find_files
from jaxscale.data.token_dataset import TokenDataset
from jaxscale.errors import DataError, MachineError, UsageError, VerificationError
from tests.jaxscale.data import corpora


def write(out, files, **flags):
    tokenizer = corpora.tokenizer()
    how = token_writer.tokenization(tokenizer, pack_lengths=(8, 16))
    return token_writer.write_dataset(out, files, tokenizer, how, **flags)


def expected(files):
    """The ids of every document, file after file, by the tokenizer alone."""
    tokenizer = corpora.tokenizer()
    end = tokenizer.token_id("</s>")
    texts = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
    return [[*ids.tolist(), end] for ids in tokenizer.encode_batch(texts, 10_000).ids], texts


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_holds_what_the_tokenizer_says(tmp_path, num_processes):
    files = corpora.files(tmp_path / "in", 3)
    dataset = write(tmp_path / "out", files, num_processes=num_processes)
    ids, texts = expected(files)
    assert [dataset.document(n).tolist() for n in range(dataset.num_documents)] == ids
    assert (dataset.num_documents, dataset.num_tokens) == (18, sum(map(len, ids)))
    assert dataset.num_bytes == sum(len(text.encode()) for text in texts)
    assert dataset.shards[0].tokens.dtype == np.dtype("<u2")
    assert dataset.tokenizer.fingerprint == corpora.tokenizer().fingerprint == dataset.tokenizer_sha256
    with pytest.raises(DataError, match="holds 18 documents"):
        dataset.document(18)


def test_the_same_texts_give_the_same_bytes(tmp_path):
    files = corpora.files(tmp_path / "in")
    assert write(tmp_path / "a", files).id == write(tmp_path / "b", files).id


def test_a_finished_dataset_is_left_as_it_is_and_another_refused(tmp_path):
    files = corpora.files(tmp_path / "in")
    dataset = write(tmp_path / "out", files)
    before = (tmp_path / "out" / "MANIFEST.json").stat().st_mtime_ns
    assert write(tmp_path / "out", files).id == dataset.id
    assert (tmp_path / "out" / "MANIFEST.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="holds a dataset of other files or settings"):
        write(tmp_path / "out", files[:1])
    assert write(tmp_path / "out", files[:1], replace=True).num_documents == 6


def test_documents_without_a_text_are_left_out_and_counted(tmp_path):
    file = corpora.write_lines(tmp_path / "in.jsonl", ["the cat", "", "the dog"])
    dataset = write(tmp_path / "out", [file])
    assert (dataset.num_documents, dataset.shards[0].counts.num_empty) == (2, 1)


def test_a_flipped_bit_is_found(tmp_path):
    dataset = write(tmp_path / "out", corpora.files(tmp_path / "in"))
    file = tmp_path / "out" / "shard-00001.tokens"
    content = bytearray(file.read_bytes())
    content[5] ^= 4
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"shard-00001\.tokens"):
        TokenDataset.open(dataset.path, check="full")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"part-9.jsonl: holds no document"),
        ('{"text": "a"}\nnot json\n', r"part-9.jsonl:2: not JSON"),
        ('["a"]\n', r"part-9.jsonl:1: got a list, expected an object"),
        ('{"txt": "a"}\n', r"part-9.jsonl:1: 'text' is NoneType, expected a text"),
        ('{"text": ""}\n', r"none of its 1 documents has a text"),
        ('{"text": "\\ud800"}\n', r"part-9.jsonl:1: 'text' holds a lone surrogate at 0"),
    ],
)
def test_a_bad_file_is_named_and_what_was_done_before_is_kept(tmp_path, monkeypatch, content, message):
    files = corpora.files(tmp_path / "in")
    bad = tmp_path / "in" / "part-9.jsonl"
    bad.write_text(content)
    with pytest.raises(DataError, match=message):
        write(tmp_path / "out", [*files, bad])
    assert not (tmp_path / "out").exists()
    made = []
    whole = token_writer._write_shard
    monkeypatch.setattr(token_writer, "_write_shard", lambda *a: made.append(a[2].name) or whole(*a))
    corpora.write_lines(bad, ["the mat"])
    dataset = write(tmp_path / "out", [*files, bad])
    assert made == ["part-9.jsonl"]
    assert dataset.id == write(tmp_path / "afresh", [*files, bad]).id


def test_a_source_that_changed_and_other_settings_are_made_anew(tmp_path, monkeypatch):
    files = corpora.files(tmp_path / "in", 3)
    whole = token_writer._write_shard

    def stop(stem, how, source, sha256):
        if source == files[2]:
            raise KeyboardInterrupt
        return whole(stem, how, source, sha256)

    monkeypatch.setattr(token_writer, "_write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", files)
    monkeypatch.setattr(token_writer, "_write_shard", whole)
    corpora.write_lines(files[0], ["other text"])
    dataset = write(tmp_path / "out", files)
    ids, _ = expected(files)
    assert [dataset.document(n).tolist() for n in range(dataset.num_documents)] == ids
    assert dataset.id == write(tmp_path / "afresh", files).id


PROGRAM = """
import sys
from pathlib import Path
from tests.jaxscale.data import corpora
from jaxscale.data import token_writer

folder, stop_at = Path(sys.argv[1]), int(sys.argv[2])
files = sorted((folder / "in").iterdir())
original = token_writer._write_durably
calls = [0]
def counted(path, content):
    calls[0] += 1
    if calls[0] == stop_at:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    original(path, content)
token_writer._write_durably = counted
tokenizer = corpora.tokenizer()
token_writer.write_dataset(folder / "out", files, tokenizer, token_writer.tokenization(tokenizer, pack_lengths=(8,)))
"""


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    files = corpora.files(tmp_path / "in", 3)
    tokenizer = corpora.tokenizer()
    alone = token_writer.write_dataset(
        tmp_path / "alone", files, tokenizer, token_writer.tokenization(tokenizer, pack_lengths=(8,))
    )
    num_kills = 0
    for stop_at in range(1, 30):
        ended = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(stop_at % 6 + 1)], env=os.environ)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        num_kills += 1
    assert num_kills >= 3
    assert TokenDataset.open(tmp_path / "out", check="full").id == alone.id


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_environment_error(tmp_path):
    def kill_the_first():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    with pytest.raises(MachineError, match="the same command goes on"):
        write(tmp_path / "out", corpora.files(tmp_path / "in"), num_processes=2)
    killer.join()
    assert not (tmp_path / "out").exists()


STUCK = """
import multiprocessing, pathlib, sys, threading, time
from jaxscale.data import token_writer
from tests.jaxscale.data import corpora

def tell():
    while len(children := multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*(child.pid for child in children), flush=True)

if __name__ == "__main__":
    threading.Thread(target=tell, daemon=True).start()
    folder, tokenizer = pathlib.Path(sys.argv[1]), corpora.tokenizer()
    how = token_writer.tokenization(tokenizer, pack_lengths=())
    token_writer.write_dataset(folder / "out", sorted(folder.glob("*.jsonl")), tokenizer, how, num_processes=2)
"""


@pytest.mark.slow
def test_processes_do_not_outlive_the_one_that_started_them(tmp_path):
    for name in "ab":
        os.mkfifo(tmp_path / f"{name}.jsonl")  # nobody writes into it: who reads it waits for ever
    (tmp_path / "program.py").write_text(STUCK)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as program:
        children = [int(pid) for pid in program.stdout.readline().split()]
        time.sleep(1.0)
        assert all(is_alive(child) for child in children)
        program.kill()
    deadline = time.monotonic() + 20
    while any(is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_bytes()


def test_what_can_not_be_asked_for(tmp_path):
    tokenizer = corpora.tokenizer()
    with pytest.raises(UsageError, match="end_token='<end>' is not in the tokenizer's vocabulary"):
        token_writer.tokenization(tokenizer, pack_lengths=(), end_token="<end>")
    with pytest.raises(UsageError, match="pack_lengths has 1"):
        token_writer.tokenization(tokenizer, pack_lengths=(1,))
    with pytest.raises(DataError, match="there is no such file"):
        find_files([tmp_path / "absent"])
    with pytest.raises(DataError, match="holds no file of documents"):
        find_files([tmp_path])
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(UsageError, match="what it holds is unknown"):
        find_files([tmp_path / "notes.doc"])
    file = corpora.write_lines(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(UsageError, match="named more than once"):
        find_files([file, tmp_path])


def test_plain_text_is_one_document_with_its_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("the cat\n\nthe dog\n")
    dataset = write(tmp_path / "out", find_files([tmp_path / "a.txt"]))
    assert dataset.tokenizer.decode(dataset.document(0)) == "the cat\n\nthe dog\n"
