"""The environment a run had: what must be known to repeat it, and what differs from another run's."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxscale.observe.host import cpu_model, memory_bytes, num_cores

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy")

# Options of jax that change what is computed, however they were set.
_JAX_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable", "jax_default_prng_impl")

# A variable whose name holds one of these may be a secret, or name a machine or a person's folder.
_PRIVATE = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "ADDRESS", "HOST", "DIR", "PATH", "USER")

# Flags that do not change results: where dumps go, how long to wait, and the device count, which is compared by itself.
_NEUTRAL_FLAGS = (
    "--xla_dump",
    "--xla_force_host_platform_device_count",
    "--xla_cpu_collective_call_terminate_timeout_seconds",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds",
)

# What XLA's results may depend on, bit for bit. The number of cores is not among it: measured on CPU, 1 or 2 cores.
_DECISIVE_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
_DECISIVE = (
    "platform",
    "platform_version",
    "device_kind",
    "num_devices",
    "num_processes",
    "num_local_devices",
    "cpu_model",
)


def snapshot() -> dict[str, Any]:
    """The environment of this process as JSON values: versions, devices, flags. No host name, folder or secret.

    Initialises jax's backend. `num_local_devices` is of this process; memory is of the host.
    """
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "operating_system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "platform": devices[0].platform,
        "platform_version": devices[0].client.platform_version,
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "num_local_devices": jax.local_device_count(),
        "cpu_model": cpu_model(),
        "num_cores": num_cores(),
        "memory_bytes": memory_bytes(),
        "xla_flags": _without_paths(os.environ.get("XLA_FLAGS", "")),
        "libtpu_init_args": _without_paths(os.environ.get("LIBTPU_INIT_ARGS", "")),
        "jax_variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("JAX_") and not any(word in name.upper() for word in _PRIVATE)
        },
        "jax_options": {name: getattr(jax.config, name) for name in _JAX_OPTIONS},
        **_checkout(),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two snapshots and may break bitwise equality, one line each, empty where nothing does.

    Args:
      old: a snapshot, maybe written by an earlier version that recorded less.
      new: a snapshot.

    >>> old = {"num_devices": 8, "xla_flags": "--a --xla_dump_to=x", "num_cores": 2}
    >>> differences(old, {"num_devices": 4, "xla_flags": "--b --a", "num_cores": 64})
    ['num_devices: was 8, is 4', 'xla_flags: added --b']
    """
    lines = _changed(_DECISIVE, old, new)
    lines += _changed(_DECISIVE_PACKAGES, old.get("packages", {}), new.get("packages", {}))
    for name in ("xla_flags", "libtpu_init_args"):
        lines += _changed_flags(name, _flags(old.get(name, "")), _flags(new.get(name, "")))
    return lines + _changed(_JAX_OPTIONS, old.get("jax_options", {}), new.get("jax_options", {}))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_paths(flags: str) -> str:
    """The flags, `...` in the place of each path: where a dump goes tells a person's folders and changes nothing."""
    return " ".join(re.sub(r"=\S*/\S*", "=...", flag) for flag in flags.split())


def _checkout() -> dict[str, Any]:
    """The commit of the checkout that this package runs from, and whether its files were changed since."""
    home = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (home / ".git").exists():
        return {"git_commit": None, "git_modified": None}
    commit = _output([git, "-C", str(home), "rev-parse", "HEAD"])
    status = _output([git, "-C", str(home), "status", "--porcelain", "--untracked-files=no"])
    return {"git_commit": commit, "git_modified": None if status is None else bool(status)}


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _changed(names: tuple[str, ...], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: was {_shown(old, name)}, is {_shown(new, name)}"
        for name in names
        if (name in old or name in new) and _shown(old, name) != _shown(new, name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "not recorded"


def _flags(text: str) -> list[str]:
    return [flag for flag in text.split() if not flag.startswith(_NEUTRAL_FLAGS)]


def _changed_flags(name: str, old: list[str], new: list[str]) -> list[str]:
    changes = [("added", [f for f in new if f not in old]), ("removed", [f for f in old if f not in new])]
    return [f"{name}: {verb} {' '.join(flags)}" for verb, flags in changes if flags]
