import copy
import json
import platform
import subprocess

import jax
import pytest

from jaxscale.observe import environment
from jaxscale.observe.environment import differences, snapshot


def test_a_snapshot_is_json_and_tells_what_it_must():
    taken = json.loads(json.dumps(snapshot()))
    assert taken["packages"]["jaxlib"] == jax.lib.__version__
    assert taken["python"] == platform.python_version()
    assert (taken["platform"], taken["num_devices"], taken["num_processes"]) == ("cpu", 8, 1)
    assert "--xla_force_host_platform_device_count=8" in taken["xla_flags"]
    assert taken["jax_variables"]["JAX_PLATFORMS"] == "cpu"
    assert taken["num_cores"] >= 1
    assert taken["memory_bytes"] > 2**28


def test_a_snapshot_holds_no_host_name_folder_or_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_API_TOKEN", "hush")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "hush:1234")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/home/hush")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/home/hush --xla_cache_dir=hush/x --xla_cpu_enable_fast_math=false")
    text = json.dumps(snapshot())
    assert "hush" not in text
    assert platform.node() not in text
    assert "--xla_dump_to=... --xla_cache_dir=... --xla_cpu_enable_fast_math=false" in text


def test_the_same_environment_has_no_differences():
    assert differences(snapshot(), json.loads(json.dumps(snapshot()))) == []


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("packages", "jaxlib"), "0.0.1", "jaxlib: was"),
        (("device_kind",), "TPU v5e", "device_kind: was cpu, is TPU v5e"),
        (("num_devices",), 4, "num_devices: was 8, is 4"),
        (("num_processes",), 2, "num_processes: was 1, is 2"),
        (("num_local_devices",), 4, "num_local_devices: was 8, is 4"),
        (("xla_flags",), "--xla_x=1", "xla_flags: added --xla_x=1"),
        (("libtpu_init_args",), "--y", "libtpu_init_args: added --y"),
        (("jax_options", "jax_enable_x64"), True, "jax_enable_x64: was False, is True"),
        (("cpu_model",), "Z80", "cpu_model: was"),
    ],
)
def test_what_breaks_bitwise_equality_is_named(path, value, line):
    old, new = snapshot(), copy.deepcopy(snapshot())
    target = new
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    found = differences(old, new)
    assert len(found) == 1
    assert found[0].startswith(line)


@pytest.mark.parametrize("name", ["num_cores", "memory_bytes", "python", "git_commit", "operating_system"])
def test_what_does_not_break_it_is_not_named(name):
    assert differences(snapshot(), snapshot() | {name: "other"}) == []


def test_a_removed_flag_is_named_and_the_order_of_flags_is_not():
    old, new = {"xla_flags": "--a --b"}, {"xla_flags": "--b"}
    assert differences(old, new) == ["xla_flags: removed --a"]
    assert differences(old, {"xla_flags": "--b --a --xla_dump_to=x"}) == []


def test_what_an_older_snapshot_did_not_record_is_named():
    old = snapshot()
    del old["cpu_model"]
    assert differences(old, snapshot())[0].startswith("cpu_model: was not recorded, is ")


def test_a_checkout_is_told_by_its_commit(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    module = tmp_path / "jaxscale" / "observe" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("first")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(environment, "__file__", str(module))
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (snapshot()["git_commit"], snapshot()["git_modified"]) == (commit, False)
    module.write_text("second")
    assert snapshot()["git_modified"] is True


def test_an_installed_package_has_no_commit_even_inside_a_checkout(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    module = tmp_path / "venv" / "site-packages" / "jaxscale" / "observe" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(module))
    assert (snapshot()["git_commit"], snapshot()["git_modified"]) == (None, None)
