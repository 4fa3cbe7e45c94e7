"""Where tests find the data that is kept outside the repository; a test that needs what is not there is skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("JAXSCALE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(relative: str) -> Path:
    """The file or folder `relative` of the shared data; skips the test where it is not on this machine."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared data; set JAXSCALE_SHARED to its folder")
    return path


def unpack_beir(name: str, out: Path) -> Path:
    """Unpacks the BEIR folder `name` of the shared data under `out` and returns it."""
    archive = shared_path(f"data/{name}.tar.zst")
    if shutil.which("zstd") is None:
        pytest.skip("needs the zstd program to unpack the shared data")
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "--zstd", "-xf", str(archive), "-C", str(out)], check=True)
    return out / name
