"""Bounds worked out by hand for one step on a few topologies."""

import pytest

from jaxscale.cost.chips import Topology
from jaxscale.cost.communication import Collective, Traffic
from jaxscale.cost.roofline import axis_bandwidths, bound_step, pipeline_bubble
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec


def moved(*axes: str, gigabytes: float) -> Traffic:
    network = "dcn" if "slice" in axes else "ici"
    collective = Collective(
        kind="all_reduce", axes=axes, network=network, num_runs=1, num_bytes=1, bytes_moved=gigabytes * 1e9, source=""
    )
    return Traffic(collectives=(collective,))


def bound(mesh: MeshSpec, topology: Topology, traffic: Traffic, flops: int = 0, hbm_bytes: int = 0):
    return bound_step(
        flops_by_dtype={"bfloat16": flops}, hbm_bytes=hbm_bytes, traffic=traffic, mesh=mesh, topology=topology
    )


V5E = Topology.parse("v5e:16x16")
MESH = MeshSpec(fsdp=16, tensor=16)


def test_compute():
    made = bound(MESH, V5E, Traffic(collectives=()), flops=197 * 10**12, hbm_bytes=819 * 10**8)
    assert (made.compute_s, made.hbm_s, made.ici_s, made.dcn_s) == (1.0, pytest.approx(0.1), 0.0, 0.0)
    assert (made.bound_by, made.overlapped_s, made.serial_s) == ("compute", 1.0, 1.0)


def test_a_whole_ring_of_16_sends_both_ways():
    made = bound(MESH, V5E, moved("fsdp", gigabytes=100), flops=197 * 10**11)
    # 2 links of 50 GB/s.
    assert made.ici_s == pytest.approx(1.0)
    assert made.bound_by == "ici"
    assert (made.overlapped_s, made.serial_s) == (pytest.approx(1.0), pytest.approx(1.1))


def test_the_data_centre_network():
    made = bound(
        MeshSpec(slice=2, fsdp=16, tensor=16), Topology.parse("v5e:16x16", num_slices=2), moved("slice", gigabytes=6.25)
    )
    assert (made.dcn_s, made.bound_by) == (pytest.approx(2.0), "dcn")


@pytest.mark.parametrize(
    ("topology", "mesh", "links"),
    [
        # Not closed below 16 chips.
        ("v5e:4x4", MeshSpec(fsdp=4, tensor=4), {"fsdp": 1, "tensor": 1}),
        ("v5e:16x16", MeshSpec(fsdp=256), {"fsdp": 4}),
        # 64 chips as 4 x 16: a part of one dim is a line.
        ("v5e:16x16", MeshSpec(fsdp=64, tensor=4), {"tensor": 1, "fsdp": 3}),
        # A 3D torus is closed at multiples of 4; two of its dims make 16.
        ("v5p:4x4x4", MeshSpec(fsdp=16, tensor=4), {"tensor": 2, "fsdp": 4}),
        ("v5p:4x4x8", MeshSpec(fsdp=16, tensor=8), {"tensor": 2, "fsdp": 4}),
    ],
)
def test_links_of_axes(topology, mesh, links):
    parsed = Topology.parse(topology)
    rate = parsed.chip.link_bytes_per_s
    assert axis_bandwidths(mesh, parsed) == {axis: number * rate for axis, number in links.items()}


def test_behind_a_switch_every_axis_has_all_links():
    assert axis_bandwidths(MeshSpec(fsdp=4, tensor=2), Topology.parse("h100:8")) == {"fsdp": 450e9, "tensor": 450e9}


def test_figures_that_nobody_states_leave_the_bound_open():
    made = bound(MeshSpec(data=8), Topology.parse("cpu:8"), moved("data", gigabytes=1), flops=1)
    assert (made.compute_s, made.ici_s, made.overlapped_s, made.bound_by) == (None, None, None, None)


def test_pipeline_bubble_by_playing_the_schedule():
    # 4 stages, 6 microbatches: a stage is busy 6 slots of 6 + 3.
    busy = {(stage, micro + stage) for stage in range(4) for micro in range(6)}
    num_slots = 1 + max(slot for _, slot in busy)
    assert pipeline_bubble(4, 6) == pytest.approx(1 - 6 / num_slots)
    assert pipeline_bubble(1, 1) == 0


def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(UsageError, match="has 8 devices, topology v5e:16x16 has 256"):
        bound(MeshSpec(data=8), V5E, Traffic(collectives=()))
