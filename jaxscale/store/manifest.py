"""MANIFEST.json: what a committed directory must hold, to the byte, in a canonical form that checks itself.

The format is written down in docs/formats/committed-directory.md.
"""

import dataclasses
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c

from jaxscale import typed_json
from jaxscale.errors import JaxscaleError, VerificationError

MANIFEST_NAME = "MANIFEST.json"
_CHECKSUM_KEY = "manifest_crc32c"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What one file must be: its length, the CRC-32C of its bytes, and its last 4 bytes, both in hexadecimal."""

    size_bytes: int
    crc32c: str
    tail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a committed directory holds.

    Attributes:
      format: what kind of directory it is, e.g. `jaxscale.vectors`.
      version: of that format.
      files: path relative to the directory, with `/`, to what the file must be.
      counts: numbers worth reading without opening a file.
      parents: role to the identity of the committed directory this one was made from.
      config: JSON values, the settings it was made with.
      config_hash: SHA-256 of the canonical bytes of `config`.
    """

    format: str
    version: int
    files: dict[str, FileEntry]
    counts: dict[str, int | float]
    parents: dict[str, str]
    config: Any
    config_hash: str

    def to_bytes(self) -> bytes:
        """The one byte string of this manifest, its own checksum included."""
        body = typed_json.encode(self)
        return typed_json.canonical(body | {_CHECKSUM_KEY: _crc32c(typed_json.canonical(body))}) + b"\n"

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest's bytes, 64 hexadecimal digits: names the directory's content and config."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(entry.size_bytes for entry in self.files.values())


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks the manifest of `directory`.

    Raises:
      VerificationError: it is damaged: not canonical, or its checksum is wrong.
      FileNotFoundError: there is none.
    """
    path = directory / MANIFEST_NAME
    content = path.read_bytes()
    try:
        body = json.loads(content)
        checksum = body.pop(_CHECKSUM_KEY)
        manifest = typed_json.decode(Manifest, body)
        as_written = manifest.to_bytes()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, JaxscaleError) as error:
        raise damaged_manifest(path, f"it can't be read ({error})") from None
    if as_written != content or checksum != _crc32c(typed_json.canonical(body)):
        raise damaged_manifest(path, "its bytes do not agree with the checksum it holds of itself")
    if manifest.config_hash != typed_json.fingerprint(manifest.config):
        raise damaged_manifest(path, "config_hash is not the hash of config")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise damaged_manifest(path, f"the file name {name!r} leads out of the directory")
    return manifest


def damaged_manifest(path: Path, what: str) -> VerificationError:
    """The error for a manifest that can't be trusted."""
    return VerificationError(f"{path} is damaged: {what}; restore it from a copy, or make its directory again")


def _crc32c(content: bytes) -> str:
    return f"{google_crc32c.value(content):08x}"
