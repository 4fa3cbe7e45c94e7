"""Meshes: what a spec means, which devices it takes, and what is refused with which words."""

import importlib.util
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxscale.errors import MachineError, UsageError
from jaxscale.mesh import (
    AXES,
    MeshSpec,
    describe_topology,
    initialize_processes,
    make_mesh,
    mesh_from_text,
    parse_positions,
    spec_of,
)
from jaxscale.sharding.plan import batch_axes, batch_sharded, replicated, row_sharded

ROOT = Path(__file__).resolve().parents[2]


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=7, max_size=7))
def test_a_spec_survives_its_text(sizes):
    spec = MeshSpec(**dict(zip(AXES, sizes, strict=True)))
    assert MeshSpec.parse(str(spec)) == spec
    assert spec.num_devices == np.prod(sizes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fdsp=2", "unknown axis 'fdsp'; did you mean 'fsdp'?; the axes are slice, stage, data, fsdp"),
        ("zzz=2", "unknown axis 'zzz'; the axes are"),
        ("fsdp=0", "fsdp=0 must be a whole number of devices, at least 1"),
        ("fsdp=-2", "fsdp=-2 must be a whole number of devices, at least 1"),
        ("data=-1,tensor=-1", "data and tensor are both -1"),
        ("fsdp=two", "fsdp='two' must be a whole number"),
        ("fsdp", "got 'fsdp' in 'fsdp', expected axis=size"),
        ("fsdp=2,,data=4", "got '' in"),
        ("fsdp=2,fsdp=4", "fsdp is named twice"),
        (
            "fsdp=3,tensor=2",
            "fsdp=3,tensor=2 needs 6 devices, 8 are there; use fsdp=4,tensor=2 or data=2,fsdp=2,tensor=2",
        ),
        ("data=4", "data=4 needs 4 devices, 8 are there; use data=8, or data=4@0-3 for the first 4 of them"),
        ("data=-1,tensor=3", "needs a multiple of 3 devices, 8 are there; use"),
        ("tensor=16", "tensor=16 needs 16 devices, 8 are there; use tensor=8"),
        ("data=4@0-9", "there is no device 8; the 8 devices are 0-7"),
        ("data=4@0,0,1,2", "must name at least one device, and each once"),
        ("data=4@3-0", "must name at least one device, and each once"),
        ("data=4@a", "got 'a' after '@', expected positions of devices"),
        ("data=4@", "got '' after '@'"),
        ("data=3@0-3", "data=3 needs 3 devices, 4 are there; use data=4"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UsageError) as caught:
        mesh_from_text(text)
    assert message in str(caught.value)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.sampled_from([1, 6, 8, 12, 64]),
)
def test_the_nearest_meshes_that_are_named_are_valid(sizes, num_devices):
    spec = MeshSpec(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    nearest = spec.nearest(num_devices)
    assert nearest
    assert all(other.resolve(num_devices).num_devices == num_devices for other in nearest)
    if spec.num_devices == num_devices:
        assert nearest[0] == spec


def test_an_unresolved_spec_has_no_number_of_devices():
    with pytest.raises(UsageError, match="data=-1 has an axis of size -1"):
        _ = MeshSpec(data=-1).num_devices


def test_a_mesh_has_every_axis_and_all_are_auto():
    mesh = make_mesh(MeshSpec(fsdp=4, tensor=2))
    assert mesh.axis_names == AXES
    assert mesh.axis_types == (AxisType.Auto,) * 7
    assert spec_of(mesh) == MeshSpec(fsdp=4, tensor=2)
    # Tensor, the fastest network, has neighbours.
    assert [d.id for d in mesh.devices.reshape(4, 2)[0]] == [0, 1]


def test_a_mesh_from_text_takes_all_devices_or_a_named_subset():
    assert spec_of(mesh_from_text("")) == MeshSpec(data=8)
    assert spec_of(mesh_from_text("data=-1,tensor=2")) == MeshSpec(data=4, tensor=2)
    assert [d.id for d in mesh_from_text("data=2,tensor=2@6,0-2").devices.flat] == [6, 0, 1, 2]
    assert spec_of(mesh_from_text("@0-2")) == MeshSpec(data=3)
    assert spec_of(make_mesh(MeshSpec(data=-1), jax.devices()[:3])) == MeshSpec(data=3)


def test_positions():
    assert parse_positions("0", 1) == [0]
    assert parse_positions("5, 0 - 2", 8) == [5, 0, 1, 2]


def fake_tpus(num_slices, shape=(2, 2)):
    """Devices that look like `num_slices` slices of a v5e, interleaved."""
    per_slice = shape[0] * shape[1]
    return [
        SimpleNamespace(
            id=s * per_slice + i,
            slice_index=s,
            process_index=s,
            platform="tpu",
            device_kind="TPU v5 lite",
            coords=(i % shape[0], i // shape[0], 0),
            core_on_chip=0,
        )
        for i in range(per_slice)
        for s in range(num_slices)
    ]


def test_only_the_slice_axis_crosses_slices():
    devices = fake_tpus(2)
    with pytest.raises(UsageError, match="data=8 has slice=1, but the devices are in 2 slices"):
        make_mesh(MeshSpec(data=8), devices)
    grid = _grid(MeshSpec(slice=2, fsdp=2, tensor=2), devices)
    assert grid.shape == (2, 1, 1, 2, 1, 1, 2)
    for i in range(2):
        assert {d.slice_index for d in grid[i].flat} == {i}


def _grid(spec, devices):
    """The arrangement that `make_mesh` would give to jax, whose Mesh does not take devices that aren't its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxscale.mesh.Mesh", lambda grid, axes, axis_types: grid)
        return make_mesh(spec, devices)


def test_emulated_devices_are_cut_into_slices_in_order():
    mesh = make_mesh(MeshSpec(slice=2, data=4))
    assert [[d.id for d in half.flat] for half in mesh.devices] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_where_arrays_go():
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))
    assert batch_axes(mesh) == ("data", "fsdp")
    x = np.arange(16.0).reshape(8, 2)
    assert jax.device_put(x, batch_sharded(mesh)).addressable_shards[0].data.shape == (2, 2)
    assert jax.device_put(x, row_sharded(mesh)).addressable_shards[0].data.shape == (1, 2)
    assert jax.device_put(x, replicated(mesh)).is_fully_replicated
    assert batch_axes(make_mesh(MeshSpec(tensor=8))) == ()
    assert jax.device_put(x, batch_sharded(make_mesh(MeshSpec(tensor=8)))).is_fully_replicated


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_topology_without_libtpu_says_what_to_install():
    with pytest.raises(MachineError, match=r"topology 'v5e:4x4': libtpu.* pip install 'jaxscale\[tpu\]'"):
        describe_topology("v5e:4x4")


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_a_described_topology_makes_a_mesh_of_several_slices():
    mesh = make_mesh(MeshSpec(slice=2, fsdp=8, tensor=2), describe_topology("v5e:4x4", num_slices=2))
    assert spec_of(mesh).num_devices == 32
    with pytest.raises(UsageError, match="libtpu does not know it"):
        describe_topology("v99:4x4")


def test_a_process_that_is_not_one_of_them_is_refused():
    with pytest.raises(UsageError, match="process_id=2 must be at least 0 and below num_processes=2"):
        initialize_processes(coordinator="localhost:1", num_processes=2, process_id=2)


PROCESS = """
    import sys
    from jaxscale.emulation import emulate_cpu_devices
    emulate_cpu_devices(2)
    import jax, numpy as np
    from jaxscale.mesh import initialize_processes, mesh_from_text
    from jaxscale.sharding.plan import replicated, row_sharded
    initialize_processes(coordinator=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    mesh = mesh_from_text("slice=2,data=2")
    # Each slice is one process: only the slice axis crosses between them.
    assert [{d.process_index for d in part.flat} for part in mesh.devices] == [{0}, {1}], mesh
    rows = row_sharded(mesh)
    x = jax.make_array_from_callback((4,), rows, lambda index: np.arange(4.0, dtype=np.float32)[index] + 1)
    sum_over_all = jax.shard_map(
        lambda x: jax.lax.psum(x, mesh.axis_names), mesh=mesh, in_specs=rows.spec, out_specs=replicated(mesh).spec
    )
    total = jax.jit(sum_over_all)(x)
    print("total", float(total[0]), len(jax.devices()), jax.process_count(), flush=True)
    jax.distributed.shutdown()
"""


@pytest.mark.multiprocess
def test_two_processes_make_one_mesh_and_sum_over_it():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), coordinator]
    processes = [
        subprocess.Popen(
            [*command, str(i)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert "total 10.0 4 2" in output, output
