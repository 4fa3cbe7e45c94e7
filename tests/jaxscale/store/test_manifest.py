import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxscale import typed_json
from jaxscale.errors import VerificationError
from jaxscale.store.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest

_CONFIG = {"rate": 0.1, "names": ["a", "ü"], "big": 10**20, "none": None}
_MANIFEST = Manifest(
    format="test",
    version=1,
    files={"a/b c.json": FileEntry(size_bytes=3, crc32c="0badcafe", tail="616263")},
    counts={"rows": 3, "recall": 0.5},
    parents={"corpus": "0" * 64},
    config=_CONFIG,
    config_hash=typed_json.fingerprint(_CONFIG),
)


def _written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    return tmp_path


def test_reads_what_was_written(tmp_path: Path) -> None:
    found = read_manifest(_written(tmp_path, _MANIFEST.to_bytes()))
    assert found == _MANIFEST
    assert found.identity == _MANIFEST.identity


def test_identity_depends_on_everything() -> None:
    for change in ({"version": 2}, {"counts": {}}, {"files": {}}, {"config": 1}):
        assert dataclasses.replace(_MANIFEST, **change).identity != _MANIFEST.identity


@pytest.mark.parametrize("shift", [0, *(pytest.param(shift, marks=pytest.mark.slow) for shift in range(1, 8))])
def test_every_single_bit_flip_is_found(tmp_path: Path, shift: int) -> None:
    content = _MANIFEST.to_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position + shift) % 8
        with pytest.raises(VerificationError, match="MANIFEST"):
            read_manifest(_written(tmp_path, bytes(flipped)))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200))
def test_garbage_is_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(VerificationError):
        read_manifest(_written(tmp_path, content))


@pytest.mark.parametrize("change", ["indent", "duplicate", "no_newline", "space"])
def test_other_bytes_of_the_same_values_are_damage(tmp_path: Path, change: str) -> None:
    content = _MANIFEST.to_bytes()
    other = {
        "indent": json.dumps(json.loads(content), indent=1, sort_keys=True).encode(),
        "duplicate": content.replace(b'"version":1', b'"version":1,"version":1'),
        "no_newline": content.rstrip(b"\n"),
        "space": content.replace(b'"version":1', b'"version": 1'),
    }[change]
    with pytest.raises(VerificationError):
        read_manifest(_written(tmp_path, other))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    bad = dataclasses.replace(_MANIFEST, files={name: FileEntry(size_bytes=0, crc32c="00000000", tail="")})
    with pytest.raises(VerificationError, match="leads out"):
        read_manifest(_written(tmp_path, bad.to_bytes()))


def test_config_hash_is_checked(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="config_hash"):
        read_manifest(_written(tmp_path, dataclasses.replace(_MANIFEST, config={"rate": 0.2}).to_bytes()))
