"""Sizes and checksums of the files below a directory, read by several threads, and what differs from a manifest."""

import dataclasses
import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import google_crc32c

from jaxscale.errors import DataError
from jaxscale.store.manifest import MANIFEST_NAME, FileEntry, Manifest

Check = Literal["sizes", "full"]

# Reading releases the interpreter's lock, the checksum (about 10 GB/s) holds it: short pieces let others in between.
_PIECE_BYTES = 1 << 20
_NUM_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """One file that is not what the manifest says."""

    file: Path
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def list_files(directory: Path) -> dict[str, int]:
    """Relative path, with `/`, to size in bytes of every regular file below `directory`, its MANIFEST.json left out.

    Raises:
      DataError: something there is neither a regular file nor a directory, or has a name that is not UTF-8.
    """
    found: dict[str, int] = {}
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                elif entry.is_file(follow_symlinks=False) and name.isprintable():
                    found[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise DataError(
                        f"{directory / name!s}: a committed directory holds regular files only, named in UTF-8"
                    )
    found.pop(MANIFEST_NAME, None)
    return found


def file_entry(path: Path) -> FileEntry:
    """Reads a file once and returns its size, checksum and tail."""
    crc, size, tail = 0, 0, b""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            crc = google_crc32c.extend(crc, piece)
            size += len(piece)
            tail = (tail + piece[-4:])[-4:]
    return FileEntry(size_bytes=size, crc32c=f"{crc:08x}", tail=tail.hex())


def file_entries(directory: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """`file_entry` of several files below `directory`, by several threads."""
    names = list(names)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: file_entry(directory / name), names), strict=True))


def compare(directory: Path, manifest: Manifest, check: Check, checked_by_codec: Collection[str] = ()) -> list[Damage]:
    """What below `directory` differs from its manifest.

    Args:
      directory: the committed directory.
      manifest: what it must hold.
      check: `sizes` looks at names and sizes, `full` at every byte.
      checked_by_codec: names of files that end in their own checksum and that the caller reads through the codec that
        checks it; of these `full` looks only at the tail, which together with the codec vouches for every byte.

    Returns:
      One damage for each file that is missing, additional, of another size or (full) of other bytes, by name.
    """
    sizes = list_files(directory)
    damages = dict.fromkeys(manifest.files.keys() - sizes.keys(), "is missing")
    damages |= dict.fromkeys(sizes.keys() - manifest.files.keys(), "is not in the manifest")
    same_size = set()
    for name in manifest.files.keys() & sizes.keys():
        if sizes[name] == manifest.files[name].size_bytes:
            same_size.add(name)
        else:
            damages[name] = f"has {sizes[name]} bytes, expected {manifest.files[name].size_bytes}"
    if check == "full":
        for name, entry in file_entries(directory, same_size.difference(checked_by_codec)).items():
            if entry != manifest.files[name]:
                damages[name] = f"has other bytes: {_mark(entry)}, expected {_mark(manifest.files[name])}"
        for name in same_size.intersection(checked_by_codec):
            tail, expected = _tail(directory / name, sizes[name]), manifest.files[name].tail
            if tail != expected:
                damages[name] = f"has other bytes: tail {tail}, expected {expected}"
    return [Damage(file=directory / name, what=damages[name]) for name in sorted(damages)]


def _tail(path: Path, size_bytes: int) -> str:
    with path.open("rb", buffering=0) as file:
        file.seek(max(0, size_bytes - 4))
        return file.read(4).hex()


def _mark(entry: FileEntry) -> str:
    return f"crc32c {entry.crc32c} tail {entry.tail}"
