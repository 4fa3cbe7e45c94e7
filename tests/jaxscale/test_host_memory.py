"""Huge pages: for whom a program is started again, and that it then has them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxscale.host_memory import TUNABLE, computes_on_cpu, gives_huge_pages

# Starts itself again where that gives it huge pages; then fills 64 MiB, and prints its words, its environment, its
# process and the page faults that the filling took.
_PROGRAM = """
import json, os, resource, sys
import numpy as np
from jaxscale.host_memory import restart_with_huge_pages

restart_with_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.empty(64 << 20, np.uint8).fill(1)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([sys.argv[1:], os.environ.get("GLIBC_TUNABLES", ""), os.getpid(), faults]))
"""
GIVEN_ON_REQUEST = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def setting(tmp_path):
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_it_is_for_those_who_would_have_them_then(setting, tmp_path):
    assert gives_huge_pages({}, setting, "glibc 2.36")
    assert gives_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, setting, "glibc 2.100")
    assert not gives_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, setting, "glibc 2.36")
    assert not gives_huge_pages({}, setting, "glibc 2.34")
    assert not gives_huge_pages({}, setting, "")
    assert not gives_huge_pages({}, tmp_path / "none", "glibc 2.36")
    setting.write_text("[always] madvise never\n")
    assert not gives_huge_pages({}, setting, "glibc 2.36")


@pytest.mark.skipif(
    not gives_huge_pages(
        {}, GIVEN_ON_REQUEST, os.confstr("CS_GNU_LIBC_VERSION") or "" if sys.platform == "linux" else ""
    ),
    reason="this system gives huge pages to nobody, or to everybody",
)
def test_the_same_process_goes_on_with_the_same_words_and_fewer_faults(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    with subprocess.Popen(
        [sys.executable, program, "a b", "--c"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        words, tunables, pid, faults = json.loads(process.communicate()[0])
    assert (words, pid) == (["a b", "--c"], process.pid)
    assert tunables == f"glibc.malloc.check=0:{TUNABLE}"
    assert faults < (64 << 20) / 4096 / 4  # a page of 4 KiB each would be 16,384 of them


@pytest.mark.parametrize(
    ("platforms", "plugin", "expected"),
    [("cpu", True, True), ("cpu,tpu", True, True), ("tpu", False, False), ("", True, False), ("", False, True)],
)
def test_where_a_process_computes(monkeypatch, platforms, plugin, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if plugin and name == "libtpu" else None)
    assert computes_on_cpu() is expected
