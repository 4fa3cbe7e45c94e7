"""Documents of a corpus, read as streams: JSON lines as Dolma has them, plain text, parquet."""

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxscale.data.lines import SUFFIXES, parse_json, read_lines, read_text
from jaxscale.errors import DataError, UsageError

_JSON_LINES = tuple(f"{name}{suffix}" for name in (".jsonl", ".json") for suffix in SUFFIXES)
_TEXT = tuple(f".txt{suffix}" for suffix in SUFFIXES)
_PARQUET = (".parquet",)
_KNOWN = (*_JSON_LINES, *_TEXT, *_PARQUET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text.

    Attributes:
      text: what it says; it may be empty.
      where: its file and line, for messages.
    """

    text: str
    where: str


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that hold documents: those named, and all of a known kind below the folders named, sorted in each.

    Args:
      paths: files and folders.

    Raises:
      DataError: a path is not there, or a folder holds no such file.
      UsageError: a file is named twice, or is of an unknown kind.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.is_file() and _is_known(file))
            if not below:
                raise DataError(f"{path}: holds no file of documents; expected names that end in {', '.join(_KNOWN)}")
            found += below
        elif not path.is_file():
            raise DataError(f"{path}: there is no such file or folder")
        elif not _is_known(path):
            raise UsageError(f"{path}: what it holds is unknown; expected a name that ends in {', '.join(_KNOWN)}")
        else:
            found.append(path)
    twice = sorted({str(file) for file in found if found.count(file) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: named more than once; name each file once")
    return found


def read_documents(path: Path, *, text_field: str = "text") -> Iterator[Document]:
    """The documents of a file, in their order.

    A line of JSON is a document, its text under `text_field`; a text file is one document; a row of parquet is one.

    Args:
      path: a file that `find_files` gave.
      text_field: the name of the text, in JSON and parquet.

    Raises:
      DataError: naming file and line: damaged, not JSON, without a text; or there is no document at all.
      UsageError: parquet, and no library that reads it is installed.
    """
    if _ends_in(path, _TEXT):
        documents = _of_text(path)
    elif _ends_in(path, _PARQUET):
        documents = _of_parquet(path, text_field)
    else:
        documents = _of_json_lines(path, text_field)
    is_empty = True
    for document in documents:
        is_empty = False
        yield document
    if is_empty:
        raise DataError(f"{path}: holds no document; leave it out")


def _of_json_lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise DataError(f"{where}: got a {type(record).__name__}, expected an object with {text_field!r}")
        yield _document(record.get(text_field), text_field, where)


def _of_text(path: Path) -> Iterator[Document]:
    text = read_text(path)
    if text:
        yield Document(text=text, where=str(path))


def _of_parquet(path: Path, text_field: str) -> Iterator[Document]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(f"{path}: reading parquet needs pyarrow: pip install 'jaxscale[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise DataError(f"{path}: has no column {text_field!r}; it has {', '.join(file.schema_arrow.names)}")
            row = 0
            for batch in file.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    yield _document(value, text_field, f"{path}, row {row}")
                    row += 1
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these classes
        raise DataError(f"{path}: can't be read as parquet: {error}") from None


def _document(text: Any, text_field: str, where: str) -> Document:
    if not isinstance(text, str):
        raise DataError(f"{where}: {text_field!r} is {type(text).__name__}, expected a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {text_field!r} holds a lone surrogate at {error.start}; replace it") from None
    return Document(text=text, where=where)


def _is_known(path: Path) -> bool:
    return _ends_in(path, _KNOWN)


def _ends_in(path: Path, endings: Sequence[str]) -> bool:
    return path.name.endswith(tuple(endings))
