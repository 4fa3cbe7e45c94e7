"""Documents: the same texts out of every kind of file, and each kind of damage named by file and place."""

import gzip
import json
import sys

import pytest
import zstandard

from jaxscale.data.documents import find_files, read_documents
from jaxscale.errors import DataError, UsageError
from tests.shared_data import shared_path

TEXTS = ["the cat", "", "zażółć\ngęślą\u2028jaźń", "🐍 \x00 \t end "]


def jsonl(texts=TEXTS):
    return "".join(json.dumps({"id": str(n), "text": text, "source": "x"}) + "\n" for n, text in enumerate(texts))


def compressed(content, name):
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.compress(content) if name.endswith(".zst") else content


def texts_of(path, **flags):
    return [document.text for document in read_documents(path, **flags)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz"])
def test_a_line_is_a_document(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(compressed(jsonl().encode(), name))
    assert find_files([tmp_path]) == [path]
    found = list(read_documents(path))
    assert [document.text for document in found] == TEXTS
    assert [document.where for document in found] == [f"{path}:{n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_a_text_file_is_a_document(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(compressed(TEXTS[2].encode(), name))
    assert texts_of(path) == [TEXTS[2]]


def test_the_text_may_have_another_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "the cat", "text": 3}\n')
    assert texts_of(path, text_field="content") == ["the cat"]
    with pytest.raises(DataError, match=r"a\.jsonl:1: 'text' is int, expected a text"):
        texts_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "\xc3\xa9" "b"}\n', r"a\.jsonl:2: not JSON: .* at byte 14 of the line"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8: .* at byte 10"),
        (b"[" * 100_000, r"a\.jsonl:1: not JSON that can be read"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: not JSON that can be read"),
        (b"3\n", r"a\.jsonl:1: got a int, expected an object with 'text'"),
        (b'{"text": "\\udc00"}', r"a\.jsonl:1: 'text' holds a lone surrogate at 0"),
        (b"\n \n", r"a\.jsonl: holds no document"),
        (b"", r"a\.jsonl: holds no document"),
    ],
)
def test_damage_is_named_by_its_place(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts_of(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_file_that_is_cut_off_is_named(tmp_path, name):
    path = tmp_path / name
    whole = compressed(jsonl([str(n) for n in range(5000)]).encode(), name)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{name}:\d+: the file is damaged or cut off"):
        texts_of(path)


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="reading parquet needs pyarrow"):
        texts_of(tmp_path / "a.parquet")


def test_a_row_of_parquet_is_a_document(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="reading parquet needs pyarrow")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3, 4]}), path)
    assert texts_of(path) == TEXTS
    with pytest.raises(DataError, match="has no column 'body'; it has text, n"):
        texts_of(path, text_field="body")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="can't be read as parquet"):
        texts_of(path)


def test_folders_are_read_in_the_order_of_names(tmp_path):
    for name in ("b/z.txt", "b/a.jsonl", "a.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [str(file.relative_to(tmp_path)) for file in find_files([tmp_path])] == ["a.txt", "b/a.jsonl", "b/z.txt"]
    with pytest.raises(UsageError, match=r"notes\.md: what it holds is unknown"):
        find_files([tmp_path / "notes.md"])
    with pytest.raises(UsageError, match=r"a\.txt: named more than once"):
        find_files([tmp_path, tmp_path / "a.txt"])


@pytest.mark.slow
def test_dolma_files_as_they_come():
    (path,) = find_files([shared_path("lm/python-doc")])
    found = texts_of(path)
    assert len(found) == 496
    assert sum(len(text.encode()) for text in found) == 9_580_922
