"""`jaxscale doctor`: what this machine has, and what is wrong with it."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from jaxscale.errors import MachineError
from jaxscale.observe.host import memory_bytes, num_cores
from jaxscale.observe.units import format_bytes

Status = Literal["ok", "warn", "fail"]

# The pairs that the tests run on; others of the same shape may work.
_TESTED_PYTHON = ((3, 11), (3, 12))
_TESTED_JAX = ("0.10", "0.12")

_MIN_MEMORY_BYTES = 4 * 2**30
_MIN_FREE_BYTES, _SCARCE_FREE_BYTES = 2**30, 5 * 2**30
_MIN_OPEN_FILES = 1024
_SLOW_FSYNC_S = 0.2
_NUM_FSYNCS = 5
_VOLATILE_FILESYSTEMS = ("tmpfs", "ramfs")

# The native libraries bring OpenMP and thread pools of their own; a clash ends the process, so another one tries it.
_LOAD_TOGETHER = """
import faiss, jax, jax.numpy as jnp, numpy as np, tensorstore
rows = np.eye(8, dtype=np.float32)
index = faiss.IndexFlatIP(8)
index.add(rows)
assert index.search(rows[:1], 1)[1][0, 0] == 0
assert float(jax.jit(jnp.sum)(rows)) == 8.0
array = tensorstore.open(dict(driver="zarr3", kvstore="memory://"), create=True, dtype="float32", shape=[8]).result()
array.write(rows[0]).result()
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at: how it is, and what to do where it is not well."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Looks at this machine: versions, devices, memory, disks, and whether the libraries get along.

    Prints one line for each thing looked at, with what to do where it is not well. Exits with 4 if something fails.

    Example: jaxscale doctor --at /data
    """

    at: Path = Path(".")
    """The folder that runs and indexes will be written in; it is tested by writing a small file."""

    def run(self) -> dict[str, Any]:
        """Prints the findings and returns them."""
        findings = self._findings()
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.status:5} {finding.name:<{width}}  {finding.detail}")
            if finding.advice:
                print(f"{'':5} {'':{width}}  -> {finding.advice}")
        failed = [finding.name for finding in findings if finding.status == "fail"]
        report = {"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}
        if failed:
            raise MachineError(f"not fit to run: {', '.join(failed)}; each says above what to do", report=report)
        return report

    def _findings(self) -> list[Finding]:
        findings = [
            *check_python(),
            *check_resources(),
            *check_disk("disk", self.at),
            *check_fsync(self.at),
            *check_tpu_compiler(),
            *check_jax(),
        ]
        if findings[-1].status != "fail":
            findings += [*check_devices(), *check_compile_cache(), *check_native_libraries()]
        return findings


def check_python() -> list[Finding]:
    """The interpreter's version."""
    detail = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] in _TESTED_PYTHON:
        return [Finding(name="python", status="ok", detail=detail)]
    tested = " and ".join(f"{major}.{minor}" for major, minor in _TESTED_PYTHON)
    return [Finding(name="python", status="warn", detail=detail, advice=f"tested on {tested} only")]


def check_jax() -> list[Finding]:
    """Whether jax imports, and whether it and jaxlib are a tested pair."""
    versions = {name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    try:
        importlib.import_module("jax")
    except Exception as error:
        advice = f"{type(error).__name__}: {error}; install the locked versions: make demo, or the files in locks/"
        return [Finding(name="jax", status="fail", detail=detail, advice=advice)]
    pairs = {_minor(versions[name]) for name in ("jax", "jaxlib")}
    if len(pairs) == 1 and pairs <= set(_TESTED_JAX):
        return [Finding(name="jax", status="ok", detail=detail)]
    advice = f"tested with jax and jaxlib {' and '.join(_TESTED_JAX)}, both of the same version"
    return [Finding(name="jax", status="warn", detail=detail, advice=advice)]


def check_devices() -> list[Finding]:
    """The devices that jax sees, and accelerators that it does not."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        advice = "JAX_PLATFORMS names the platforms that jax may use; unset it, or install the extra tpu or cuda"
        return [Finding(name="devices", status="fail", detail=str(error), advice=advice)]
    detail = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    findings = [Finding(name="devices", status="ok", detail=detail)]
    if devices[0].platform == "cpu" and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        for kind, extra, nodes in (("NVIDIA GPU", "cuda", "nvidia[0-9]*"), ("TPU", "tpu", "accel[0-9]*")):
            if seen := sorted(Path("/dev").glob(nodes)):
                advice = f"jax does not use it; pip install 'jaxscale[{extra}]'"
                findings.append(Finding(name=kind, status="warn", detail=f"{seen[0]} is there", advice=advice))
    return findings


def check_resources() -> list[Finding]:
    """Cores, memory, and how many files may be open at once."""
    cores, memory = num_cores(), memory_bytes()
    small = cores < 2 or memory < _MIN_MEMORY_BYTES
    open_files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= open_files < _MIN_OPEN_FILES
    return [
        Finding(
            name="cores and memory",
            status="warn" if small else "ok",
            detail=f"{cores} cores, {format_bytes(memory)}",
            advice=f"the demo wants 2 cores and {format_bytes(_MIN_MEMORY_BYTES)}" if small else "",
        ),
        Finding(
            name="open files",
            status="warn" if few else "ok",
            detail=f"at most {open_files}",
            advice=f"sharded arrays open many: ulimit -n {most if most > 0 else 65536}" if few else "",
        ),
    ]


def check_disk(name: str, folder: Path) -> list[Finding]:
    """The space left, and whether the file system keeps what it is given."""
    if not folder.is_dir():
        return [
            Finding(name=name, status="fail", detail=f"{folder} is not a folder", advice="make it, or name another")
        ]
    free, filesystem = shutil.disk_usage(folder).free, filesystem_of(folder)
    detail = f"{folder.resolve()}: {format_bytes(free)} free, {filesystem}"
    if free < _MIN_FREE_BYTES:
        return [Finding(name=name, status="fail", detail=detail, advice="make room, or choose another folder")]
    if free < _SCARCE_FREE_BYTES:
        return [Finding(name=name, status="warn", detail=detail, advice="checkpoints and indexes may not fit")]
    if filesystem in _VOLATILE_FILESYSTEMS:
        return [Finding(name=name, status="warn", detail=detail, advice="nothing written here survives a restart")]
    return [Finding(name=name, status="ok", detail=detail)]


def check_fsync(folder: Path) -> list[Finding]:
    """Whether a file can be written, put on disk and renamed, and how long putting it on disk takes."""
    try:
        times = _fsync_times_s(folder)
    except OSError as error:
        advice = "choose a folder that you may write in"
        return [Finding(name="fsync", status="fail", detail=str(error), advice=advice)]
    median = statistics.median(times)
    detail = f"{median * 1e3:.2f} ms for 1 MiB, the median of {len(times)}"
    if median > _SLOW_FSYNC_S:
        advice = "every commit waits for several; checkpoint less often, or write on a local disk"
        return [Finding(name="fsync", status="warn", detail=detail, advice=advice)]
    return [Finding(name="fsync", status="ok", detail=detail)]


def check_compile_cache() -> list[Finding]:
    """The folder of compiled programs: whether it is there or can be made."""
    from jaxscale.train.compile_cache import default_folder

    folder = default_folder()
    nearest = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(nearest, os.W_OK):
        advice = "set XDG_CACHE_HOME to a folder of yours, or train with --operation.compile-cache off"
        return [Finding(name="compile cache", status="warn", detail=f"{folder} can't be written", advice=advice)]
    return check_disk("compile cache", nearest)


def check_native_libraries() -> list[Finding]:
    """Whether faiss, jax and TensorStore work in one process, tried in one of its own."""
    name = "faiss, jax, tensorstore"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOAD_TOGETHER], capture_output=True, text=True, timeout=120, env=environment
        )
    except subprocess.TimeoutExpired:
        return [Finding(name=name, status="fail", detail="hang in one process", advice="install the locked versions")]
    versions = f"faiss {_version('faiss-cpu')}, tensorstore {_version('tensorstore')}"
    if done.returncode == 0:
        return [Finding(name=name, status="ok", detail=f"work in one process ({versions})")]
    why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [Finding(name=name, status="fail", detail=f"{versions}: {why}", advice="install the locked versions")]


def check_tpu_compiler() -> list[Finding]:
    """libtpu, which compiles TPU programs on any machine, and what makes it wait where there is no TPU."""
    if importlib.util.find_spec("libtpu") is None:
        detail = "not installed; only needed to run on TPUs or to compile for them: pip install 'jaxscale[tpu]'"
        return [Finding(name="libtpu", status="ok", detail=detail)]
    detail = f"{_version('libtpu')}: compiles TPU programs on this machine"
    on_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    if not on_tpu and os.environ.get("TPU_SKIP_MDS_QUERY") != "1":
        advice = "without a TPU it waits for a metadata server: export TPU_SKIP_MDS_QUERY=1"
        return [Finding(name="libtpu", status="warn", detail=detail, advice=advice)]
    return [Finding(name="libtpu", status="ok", detail=detail)]


def filesystem_of(folder: Path) -> str:
    """The type of the file system that a folder is on, as /proc/mounts tells it; "unknown" where there is none."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return "unknown"
    # /proc/mounts writes a space in a path as \040.
    rows = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    places = {Path(place.replace("\\040", " ")): kind for place, kind in rows}
    resolved = folder.resolve()
    return next((places[path] for path in (resolved, *resolved.parents) if path in places), "unknown")


def _fsync_times_s(folder: Path) -> list[float]:
    times, block = [], os.urandom(2**20)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".jaxscale-doctor-") as scratch:
        for number in range(_NUM_FSYNCS):
            path = Path(scratch) / f"{number}.tmp"
            with path.open("wb") as file:
                file.write(block)
                file.flush()
                start = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - start)
            path.rename(path.with_suffix(".bin"))
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return times


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
