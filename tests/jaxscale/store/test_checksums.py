import os
from pathlib import Path

import google_crc32c
import pytest

from jaxscale.errors import DataError
from jaxscale.store.checksums import file_entry, list_files


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1 << 20, (1 << 20) + 2, 3_000_001])
def test_file_entry_is_the_plain_checksum(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    entry = file_entry(tmp_path / "f")
    assert entry.size_bytes == size
    assert entry.crc32c == f"{google_crc32c.value(content):08x}"
    assert entry.tail == content[-4:].hex()


def test_the_tail_tells_self_checksummed_files_apart(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    a, b = file_entry(tmp_path / "a"), file_entry(tmp_path / "b")
    assert a.crc32c == b.crc32c == "48674bc7"
    assert a != b


def test_list_files_is_recursive_and_leaves_the_manifest_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/f", "g", "MANIFEST.json", "a/MANIFEST.json"):
        (tmp_path / name).write_bytes(b"12")
    assert list_files(tmp_path) == {"a/b/f": 2, "g": 2, "a/MANIFEST.json": 2}


@pytest.mark.parametrize("kind", ["symlink", "fifo", "not_utf8", "newline"])
def test_list_files_refuses_what_it_cannot_vouch_for(tmp_path: Path, kind: str) -> None:
    if kind == "symlink":
        (tmp_path / "x").symlink_to("/etc/hostname")
    elif kind == "fifo":
        os.mkfifo(tmp_path / "x")
    else:
        Path(os.fsdecode(os.fsencode(tmp_path) + (b"/\xff" if kind == "not_utf8" else b"/a\nb"))).write_bytes(b"")
    with pytest.raises(DataError, match="regular files"):
        list_files(tmp_path)
