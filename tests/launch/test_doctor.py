import json
import subprocess
from pathlib import Path

import jax
import pytest

from jaxscale.errors import MachineError
from launch.cli import main
from launch.verbs import doctor


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the one check that starts a process; it has a test of its own."""
    monkeypatch.setattr(doctor, "check_native_libraries", lambda: [])


def the(findings, name):
    return next(finding for finding in findings if finding.name == name)


def test_a_sound_machine_is_said_to_be_fit(quick, tmp_path, capsys):
    report = doctor.Command(at=tmp_path).run()
    assert report["ok"] is True
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if not line.startswith(" ")] == [f["status"] for f in report["findings"]]
    assert not any(f["status"] == "fail" for f in report["findings"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_ends_with_exit_code_4_and_a_report_all_the_same(quick, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main(["doctor", "--at", str(tmp_path / "none"), "--json", str(out)]) == 4
    report = json.loads(out.read_text())
    assert report["ok"] is False
    assert report["exit_code"] == 4
    assert {f["name"] for f in report["findings"] if f["status"] == "fail"} == {"disk", "fsync"}
    captured = capsys.readouterr()
    assert "-> make it, or name another" in captured.out
    assert "not fit to run: disk, fsync" in captured.err


def test_every_finding_that_is_not_well_says_what_to_do(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 2**30)
    monkeypatch.setattr(doctor, "_TESTED_PYTHON", ((3, 99),))
    monkeypatch.setattr(doctor, "_TESTED_JAX", ("9.9",))
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 2**60)
    monkeypatch.setattr(doctor, "_SLOW_FSYNC_S", 0.0)
    monkeypatch.setattr(doctor, "_MIN_OPEN_FILES", 2**40)
    with pytest.raises(MachineError) as caught:
        doctor.Command(at=tmp_path).run()
    ill = [f for f in caught.value.report["findings"] if f["status"] != "ok"]
    assert {"python", "jax", "cores and memory", "open files", "disk", "fsync"} <= {f["name"] for f in ill}
    assert all(f["advice"] for f in ill)


def test_the_devices_are_those_of_jax():
    finding = the(doctor.check_devices(), "devices")
    assert finding.detail == f"{len(jax.devices())} x cpu (cpu)"


def test_a_platform_that_jax_can_not_start_is_a_failure(monkeypatch):
    def no_devices():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", no_devices)
    finding = the(doctor.check_devices(), "devices")
    assert finding.status == "fail"
    assert "JAX_PLATFORMS" in finding.advice


def test_without_jax_the_rest_is_looked_at_all_the_same(monkeypatch, tmp_path):
    def no_import(name):
        raise RuntimeError("jaxlib is version 0.1, but this version of jax requires 0.10")

    monkeypatch.setattr(doctor.importlib, "import_module", no_import)
    with pytest.raises(MachineError, match="not fit to run: jax") as caught:
        doctor.Command(at=tmp_path).run()
    assert "requires 0.10" in caught.value.report["findings"][-1]["advice"]


@pytest.mark.parametrize(
    ("jax_version", "jaxlib_version", "status"),
    [
        ("0.10.2", "0.10.2", "ok"),
        ("0.12.0.1", "0.12.0", "ok"),
        ("0.12.0", "0.10.2", "warn"),
        ("0.13.0", "0.13.0", "warn"),
    ],
)
def test_only_tested_pairs_of_jax_and_jaxlib_are_ok(monkeypatch, jax_version, jaxlib_version, status):
    versions = {"jax": jax_version, "jaxlib": jaxlib_version}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "1.0"))
    assert the(doctor.check_jax(), "jax").status == status


@pytest.mark.parametrize(("free", "status"), [(2**29, "fail"), (2 * 2**30, "warn"), (2**40, "ok")])
def test_the_disk_needs_room(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    monkeypatch.setattr(doctor, "filesystem_of", lambda path: "ext4")
    assert the(doctor.check_disk("disk", tmp_path), "disk").status == status


def test_a_file_system_in_memory_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "filesystem_of", lambda path: "tmpfs")
    assert "survives" in the(doctor.check_disk("disk", tmp_path), "disk").advice


@pytest.mark.skipif(not Path("/proc/mounts").is_file(), reason="needs /proc/mounts")
def test_the_file_system_is_that_of_the_nearest_mount():
    assert doctor.filesystem_of(Path("/proc/self")) == "proc"
    assert doctor.filesystem_of(Path("/")) != "unknown"


def test_fsync_is_timed_and_leaves_nothing(tmp_path):
    finding = the(doctor.check_fsync(tmp_path), "fsync")
    assert finding.status in ("ok", "warn")
    assert " ms for 1 MiB" in finding.detail
    assert list(tmp_path.iterdir()) == []


def test_a_compile_cache_that_can_not_be_made_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert str(tmp_path) in the(doctor.check_compile_cache(), "compile cache").detail
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert the(doctor.check_compile_cache(), "compile cache").status == "warn"


def test_the_native_libraries_work_in_one_process():
    (finding,) = doctor.check_native_libraries()
    assert (finding.status, finding.advice) == ("ok", "")


@pytest.mark.parametrize("code", ["import os; os.abort()", "raise ImportError('libgomp')"])
def test_native_libraries_that_crash_are_a_failure_and_not_ours(monkeypatch, code):
    monkeypatch.setattr(doctor, "_LOAD_TOGETHER", code)
    (finding,) = doctor.check_native_libraries()
    assert finding.status == "fail"
    assert "libgomp" in finding.detail or "exit code -6" in finding.detail


def test_native_libraries_that_hang_are_a_failure(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    (finding,) = doctor.check_native_libraries()
    assert (finding.status, finding.detail) == ("fail", "hang in one process")


def test_libtpu_without_a_tpu_must_not_ask_for_metadata(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert "TPU_SKIP_MDS_QUERY=1" in the(doctor.check_tpu_compiler(), "libtpu").advice
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert the(doctor.check_tpu_compiler(), "libtpu").status == "ok"
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert the(doctor.check_tpu_compiler(), "libtpu").detail.startswith("not installed")
