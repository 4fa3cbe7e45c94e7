"""Emulated devices: what the environment of a process says before jax is there, and after."""

import os
import sys

import pytest

from jaxscale.emulation import emulate_cpu_devices
from jaxscale.errors import UsageError


def test_it_replaces_an_earlier_number_and_keeps_other_flags(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_force_host_platform_device_count=3")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    emulate_cpu_devices(5)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[:2] == ["--xla_dump_to=x", "--xla_force_host_platform_device_count=5"]
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    emulate_cpu_devices(6)
    assert len(os.environ["XLA_FLAGS"].split()) == len(flags)


def test_it_is_refused_once_jax_is_there():
    with pytest.raises(UsageError, match="num_devices=4: jax is imported already"):
        emulate_cpu_devices(4)
