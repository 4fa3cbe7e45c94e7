"""Freed memory: pages that are handed out once, and where that is asked for."""

import importlib.util
import json
import subprocess
import sys

import pytest

from jaxscale.host_memory import computes_on_cpu

# Takes and frees 64 MiB from a thread, again and again, as a step does; prints the page faults after the first round.
_ROUNDS = """
import json, resource, sys, threading
import numpy as np
from jaxscale.host_memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else None

def round():
    np.empty(64 << 20, np.uint8).fill(1)

def rounds():
    round()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        round()
    print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))

thread = threading.Thread(target=rounds)
thread.start()
thread.join()
"""


def faults(mode: str) -> tuple[bool | None, int]:
    done = subprocess.run([sys.executable, "-c", _ROUNDS, mode], capture_output=True, text=True, check=True)
    kept, number = json.loads(done.stdout)
    return kept, number


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_kept_memory_costs_its_page_faults_once():
    kept, number = faults("kept")
    if not kept:
        pytest.skip("this system's allocator is not glibc's")
    # Four rounds of fresh pages: a fault for each of 4 KiB, or of 2 MiB where the system gives huge ones.
    _, of_fresh_pages = faults("fresh")
    assert of_fresh_pages >= 4 * 32
    assert number < of_fresh_pages / 8


@pytest.mark.parametrize(
    ("platforms", "plugin", "expected"),
    [("cpu", True, True), ("cpu,tpu", True, True), ("tpu", False, False), ("", True, False), ("", False, True)],
)
def test_where_a_process_computes(monkeypatch, platforms, plugin, expected):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if plugin and name == "libtpu" else None)
    assert computes_on_cpu() is expected
