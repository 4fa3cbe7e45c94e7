"""Lines of text files, plain or compressed by gzip or zstd as their names end, read and written as streams."""

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import zstandard

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.store import disk

T = TypeVar("T")

SUFFIXES = ("", ".gz", ".zst")

# A line is held in memory whole; more than this is a file of another kind.
_MAX_LINE_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**16
_ZSTD_LEVEL = 10


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a UTF-8 file; blank lines are passed over.

    A byte order mark at the start is dropped, and a carriage return before a line's end.

    Args:
      path: a file; `.gz` and `.zst` are decompressed, several frames or members in a row included.

    Raises:
      DataError: the file can't be opened, a line is not UTF-8 or too long, the compressed data is damaged or cut off.
    """
    with _open_for_reading(path) as file:
        number = 0
        while raw := _read_line(file, path, number + 1):
            number += 1
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8: {error.reason} at byte {error.start}") from None
            if line and not line.isspace():
                yield number, line


def read_typed_lines(path: Path, cls: type[T]) -> Iterator[tuple[str, T]]:
    """Yields (file:line for messages, the record) of a file of JSON lines that are each a `cls` and nothing else.

    Args:
      path: as `read_lines` takes it.
      cls: a dataclass; see `typed_json.decode`.

    Raises:
      DataError: as `read_lines`; a line is not JSON, or not such a record.
    """
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        yield where, typed_json.decode(cls, parse_json(line, where), where)


def parse_json(line: str, where: str, expected: str = "") -> Any:
    """The JSON value of one line.

    Args:
      line: without its end.
      where: file:line, for messages.
      expected: what a line should look like, for messages; empty where JSON is all there is to say.

    Raises:
      DataError: it is not JSON.

    >>> parse_json('{"a": [1, 2]}', "x.jsonl:1")
    {'a': [1, 2]}
    """
    hint = f"; expected {expected}" if expected else ""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        byte = len(line[: error.pos].encode())
        raise DataError(f"{where}: not JSON: {error.msg} at byte {byte} of the line{hint}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists in lists without end
        raise DataError(f"{where}: not JSON that can be read: {error}{hint}") from None


def read_text(path: Path) -> str:
    """All of a UTF-8 file, decompressed as `read_lines` does; line ends stay as they are.

    Raises:
      DataError: the file can't be opened, is not UTF-8, or its compressed data is damaged or cut off.
    """
    with _open_for_reading(path) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{path}: the file is damaged or cut off: {error}") from None


@contextlib.contextmanager
def write_text(path: Path) -> Iterator[IO[str]]:
    """Opens a UTF-8 file to write; `.gz` and `.zst` are compressed, always to the same bytes for the same text.

    Args:
      path: the file; it must not exist.
    """
    with contextlib.ExitStack() as stack:
        binary: IO[bytes] = stack.enter_context(path.open("xb"))
        if path.suffix == ".gz":
            compressed = gzip.GzipFile(filename="", mode="wb", fileobj=binary, mtime=0)
            binary = cast(IO[bytes], stack.enter_context(compressed))
        elif path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
            binary = cast(IO[bytes], stack.enter_context(compressor.stream_writer(binary)))
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        try:
            yield text
        finally:
            text.detach()


def check_place(path: Path) -> None:
    """Refuses a place that `replace_text` can't write a file to.

    Raises:
      UsageError: a folder is there, or a file is where its folder should be.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    disk.check_directory_above(path)


@contextlib.contextmanager
def replace_text(path: Path) -> Iterator[IO[str]]:
    """As `write_text`, but beside the file's place and renamed into it at the end: never half a file.

    Args:
      path: the file; one that exists is replaced, its folder is made.

    Raises:
      UsageError: as `check_place`.
    """
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.tmp-{path.name}")
    try:
        with write_text(draft) as text:
            yield text
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name`, `name.gz` or `name.zst` of a folder, or None.

    Raises:
      DataError: there are several, and nothing says which one counts.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: holds {' and '.join(p.name for p in found)}; keep one of them")
    return found[0] if found else None


def _open_for_reading(path: Path) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        if path.suffix == ".zst":
            return io.BufferedReader(_ZstdFrames(path.open("rb")), _CHUNK_BYTES)
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None


def _read_line(file: IO[bytes], path: Path, number: int) -> bytes:
    try:
        raw = file.readline(_MAX_LINE_BYTES + 1)
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path}:{number}: the file is damaged or cut off: {error}") from None
    if len(raw) > _MAX_LINE_BYTES:
        raise DataError(f"{path}:{number}: the line is longer than {_MAX_LINE_BYTES} bytes")
    return raw


class _ZstdFrames(io.RawIOBase):
    """Decompresses zstd frames; unlike the library's own reader it notices a file that ends inside a frame."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._compressed = b""
        self._text = memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        while not self._text:
            self._compressed = self._compressed or self._file.read(_CHUNK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it ends inside a zstd frame")
                return 0
            self._decompress()
        count = min(len(target), len(self._text))
        target[:count] = self._text[:count]
        self._text = self._text[count:]
        return count

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._text = memoryview(self._frame.decompress(self._compressed))
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
