"""Several processes save one state, each its shards, and read it back on another layout."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxscale.store.checkpoints import Checkpoints
from jaxscale.store.verify import verify

_PROGRAM = """
import sys
import time
from jaxscale.emulation import emulate_cpu_devices
emulate_cpu_devices(2)
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from jax.experimental.multihost_utils import sync_global_devices
from jaxscale.store.checkpoints import Checkpoints

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole = np.arange(64, dtype=np.float32).reshape(8, 8)

def put(spec):
    return jax.make_array_from_callback(whole.shape, NamedSharding(mesh, spec), lambda index: whole[index])

state = {"rows": put(PartitionSpec("data")), "columns": put(PartitionSpec(None, "data")), "all": put(PartitionSpec())}
# The second process is slow to write: the first must not commit before it has.
if process == 1:
    from jaxscale.store import arrays

    write_named = arrays.write_named
    arrays.write_named = lambda *args: (time.sleep(1.0), write_named(*args))
with Checkpoints(folder, keep_last=1) as checkpoints:
    for step in (1, 2, 2):
        if step == checkpoints.latest():  # as after a rollback: the same step is saved a second time
            sync_global_devices("looked")
            checkpoints.remove(step)
            sync_global_devices("removed")
        checkpoints.save_async(step, state, {"step": step})
        checkpoints.wait()
        assert step in checkpoints.steps(), checkpoints.steps()
    swapped = {"rows": state["columns"].sharding, "columns": state["rows"].sharding, "all": state["rows"].sharding}
    restored, metadata = checkpoints.restore(2, state, swapped)
assert metadata == {"step": 2}
for name, value in restored.items():
    assert value.sharding == swapped[name]
    for shard in value.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
"""


@pytest.mark.multiprocess
def test_two_processes_save_and_restore(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(process), port, str(tmp_path / "c")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert not verify(tmp_path / "c").damages
    whole = np.arange(64, dtype=np.float32).reshape(8, 8)
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.steps() == [2]
    for value in checkpoints.restore(2, dict.fromkeys(("rows", "columns", "all"), whole))[0].values():
        np.testing.assert_array_equal(value, whole)
