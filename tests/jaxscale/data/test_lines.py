"""Lines of plain and compressed files: what is read, what is refused and where, what is written."""

import dataclasses
import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.lines import SUFFIXES, find_file, read_lines, read_typed_lines, replace_text, write_text
from jaxscale.errors import DataError

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def pack(path: Path, content: bytes) -> Path:
    path.write_bytes(PACKERS[path.suffix if path.suffix in PACKERS else ""](content))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads_lines_with_their_numbers(tmp_path: Path, suffix: str) -> None:
    content = "\ufefffirst\r\n\n  \nfourth é\u2028still fourth\nlast".encode()
    path = pack(tmp_path / f"x{suffix}", content)
    assert list(read_lines(path)) == [(1, "first"), (4, "fourth é\u2028still fourth"), (5, "last")]


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=20)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), max_size=8))
def test_gives_back_what_it_wrote(tmp_path_factory: pytest.TempPathFactory, suffix: str, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("lines") / f"x{suffix}"
    with write_text(path) as text:
        text.writelines(f"{line}\n" for line in lines)
    expected = [(n, line.removeprefix("\ufeff") if n == 1 else line) for n, line in enumerate(lines, 1)]
    assert list(read_lines(path)) == [(n, line) for n, line in expected if line and not line.isspace()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_text_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        with write_text(tmp_path / f"{name}{suffix}") as text:
            text.write("one\ntwo\n" * 1000)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_reads_several_frames_and_members(tmp_path: Path) -> None:
    parts = [b"a\nb", b"c\nd\n", b"", b"e\n"]
    expected = [(1, "a"), (2, "bc"), (3, "d"), (4, "e")]
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"".join(PACKERS[suffix](part) for part in parts))
        assert list(read_lines(path)) == expected


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_damaged_compression_is_told_with_file_and_line(tmp_path: Path, suffix: str, damage: str) -> None:
    with write_text(tmp_path / f"x{suffix}") as text:
        text.writelines(f"line {i * 7919 % 10007} of a text that does not compress to nothing\n" for i in range(20_000))
    path = tmp_path / f"x{suffix}"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "cut":
        content = content[:-3]
    elif damage == "flip":
        content[middle] ^= 0x10
    else:
        content = bytearray(b"this was never compressed\n")
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\{suffix}:\d+: the file is damaged or cut off"):
        list(read_lines(path))


def test_not_utf8_is_told_with_file_and_line(tmp_path: Path) -> None:
    path = pack(tmp_path / "x", b"fine\nb\xffd\n")
    with pytest.raises(DataError, match=r"x:2: not UTF-8: invalid start byte at byte 1"):
        list(read_lines(path))


def test_a_line_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxscale.data.lines._MAX_LINE_BYTES", 10)
    path = pack(tmp_path / "x.zst", b"123456789\n12345678901\n")
    lines = read_lines(path)
    assert next(lines) == (1, "123456789")
    with pytest.raises(DataError, match=r"x.zst:2: the line is longer than 10 bytes"):
        next(lines)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for name in ("none", "none.gz", "none.zst"):
        with pytest.raises(DataError, match="No such file"):
            list(read_lines(tmp_path / name))
    with pytest.raises(DataError, match="Is a directory"):
        list(read_lines(tmp_path))


@dataclasses.dataclass(frozen=True)
class Named:
    name: str


def test_typed_lines_are_records_and_nothing_else(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.gz", b'{"name": "a"}\n\n{"name": "b"}\n')
    assert list(read_typed_lines(path, Named)) == [(f"{path}:1", Named("a")), (f"{path}:3", Named("b"))]
    for line, message in (("{", "not JSON"), ("[" * 100_000, "not JSON"), ('{"name": "a", "age": 1}', "age")):
        path = pack(tmp_path / "x", f'{{"name": "a"}}\n{line}\n'.encode())
        with pytest.raises(DataError, match=rf"x:2.*{message}"):
            list(read_typed_lines(path, Named))


def test_finds_the_one_file(tmp_path: Path) -> None:
    assert find_file(tmp_path, "x") is None
    (tmp_path / "x.gz").touch()
    assert find_file(tmp_path, "x") == tmp_path / "x.gz"
    (tmp_path / "x").touch()
    with pytest.raises(DataError, match=r"holds x and x.gz; keep one"):
        find_file(tmp_path, "x")


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.gz"
    with replace_text(path) as text:
        text.write("old\n")

    def fail_midway() -> None:
        with replace_text(path) as text:
            text.write("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert list(read_lines(path)) == [(1, "old")]
    assert list(path.parent.iterdir()) == [path]


def test_writing_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(FileExistsError), write_text(tmp_path / "x"):
        pass
