"""Emulated CPU devices: N XLA devices on one host, for tests and for trying a mesh out. Imports no jax."""

import os
import re
import sys

from jaxscale.errors import UsageError

_FLAG = "--xla_force_host_platform_device_count"
# Emulated devices share the host's cores, so one may wait long for another before a collective; 40 s is XLA's default.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=600"


def emulate_cpu_devices(num_devices: int) -> None:
    """Makes this process's jax see `num_devices` CPU devices. Call it before anything imports jax.

    Args:
      num_devices: how many, at least 1.

    Raises:
      UsageError: jax has been imported, so that its devices may already be fixed.
    """
    if "jax" in sys.modules:
        raise UsageError(f"num_devices={num_devices}: jax is imported already; emulate devices before importing it")
    kept = [
        f for f in os.environ.get("XLA_FLAGS", "").split() if not re.match(rf"{_FLAG}|{_PATIENCE.split('=')[0]}", f)
    ]
    os.environ["XLA_FLAGS"] = " ".join([*kept, f"{_FLAG}={num_devices}", _PATIENCE])
    os.environ["JAX_PLATFORMS"] = "cpu"
