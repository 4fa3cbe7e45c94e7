"""Meshes are all factorisations; smaller slices are the shapes that are sold."""

import pytest

from jaxscale.cost.chips import Topology
from jaxscale.cost.tune_shapes import meshes_of, smaller_topologies


def test_every_mesh_once_with_all_devices():
    meshes = list(meshes_of(Topology.parse("v5e:4x4", num_slices=2), ("tensor", "data", "fsdp")))
    assert len(meshes) == len(set(map(str, meshes))) == 15
    assert {mesh.num_devices for mesh in meshes} == {32}
    assert {mesh.slice for mesh in meshes} == {2}


@pytest.mark.parametrize(
    ("text", "smaller"),
    [
        ("v5e:8x8", ["1x1", "2x2", "2x4", "4x4", "4x8"]),
        ("v5p:4x4x4", ["2x2x1", "2x2x2", "2x2x4", "2x4x4"]),
        ("h100:8", ["1", "2", "4"]),
        ("v5e:1x1", []),
    ],
)
def test_smaller_slices_are_those_that_are_sold(text, smaller):
    name = text.partition(":")[0]
    assert [str(found) for found in smaller_topologies(Topology.parse(text))] == [f"{name}:{s}" for s in smaller]


def test_of_several_slices_one_is_smaller_than_two():
    found = list(smaller_topologies(Topology.parse("v5e:4x4", num_slices=2)))
    assert str(found[-1]) == "v5e:4x4"
    assert {topology.num_slices for topology in found} == {1}
