"""The persistent compile cache: the same bits with none, a cold, a warm and a damaged one."""

import jax
import pytest

from jaxscale.errors import MachineError
from jaxscale.mesh import mesh_from_text
from jaxscale.observe.compiles import CompileCounter
from jaxscale.train import compile_cache
from tests.jaxscale.train import tiny
from tests.jaxscale.train.test_loop import go


def one_device():
    return mesh_from_text("data=1@0")


def test_several_cpu_devices_do_without(tmp_path):
    with compile_cache.enabled(str(tmp_path / "c"), mesh_from_text("data=2@0-1")) as folder:
        assert folder is None
        assert jax.config.jax_compilation_cache_dir is None
    assert not (tmp_path / "c").exists()


def test_the_cache_changes_no_bit(tmp_path):
    hashes, hits = {}, {}
    for name, setting in (("none", "off"), ("cold", str(tmp_path / "c")), ("warm", str(tmp_path / "c"))):
        with CompileCounter() as counter:
            hashes[name] = go(tiny.job(num_steps=4, compile_cache=setting), tmp_path / name).state_hash
        hits[name] = counter.num_cache_hits
    assert hashes["none"] == hashes["cold"] == hashes["warm"]
    assert (hits["none"], hits["cold"]) == (0, 0)
    assert hits["warm"] >= 1


def test_jax_is_left_as_it_was(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with compile_cache.enabled(str(tmp_path / "c"), one_device()) as folder:
        assert folder == tmp_path / "c"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "c")
    assert jax.config.jax_compilation_cache_dir == before


def test_auto_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with compile_cache.enabled("auto", one_device()) as folder:
        assert folder == tmp_path / "jaxscale/compile"
        assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MachineError, match="compile_cache="),
        compile_cache.enabled(str(tmp_path / "file/c"), one_device()),
    ):
        pass
