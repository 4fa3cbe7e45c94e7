"""Parts of axes: what an entry means, what fits, and programs on a mesh whose axes are in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.mesh import MeshSpec, in_parts, make_mesh, spec_of
from jaxscale.sharding.specs import factors_of, merged, num_parts, overlap, partition_spec

MESH = MeshSpec(fsdp=3, tensor=8)


def test_the_ways_of_parts():
    assert num_parts(MESH, ("tensor[1:2]",)) == 2
    assert num_parts(MESH, ("tensor[2:8]", "fsdp")) == 12
    assert num_parts(MESH, ()) == 1


def test_parts_that_follow_each_other_are_one():
    assert merged(MESH, ("tensor[1:2]", "tensor[2:4]")) == ("tensor[1:4]",)
    assert merged(MESH, ("tensor[2:8]", "tensor[1:2]")) == ("tensor[2:8]", "tensor[1:2]")


def test_which_entries_overlap():
    assert overlap(MESH, "tensor", "tensor[2:4]")
    assert not overlap(MESH, "tensor[1:4]", "tensor[4:8]")
    assert not overlap(MESH, "tensor", "fsdp")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["tensor"], {}),
        (["tensor[1:2]", "tensor[2:8]"], {"tensor": (2, 4)}),
        (["tensor[1:2]", "tensor[1:4]"], {"tensor": (2, 2, 2)}),
    ],
)
def test_the_factors_that_specs_need(entries, expected):
    assert factors_of(MESH, [((entry,), ()) for entry in entries]) == expected


def test_cuts_that_do_not_fit_each_other():
    assert factors_of(MeshSpec(tensor=6), [(("tensor[1:2]",),), (("tensor[1:3]",),)]) is None


def test_whole_axes_are_named_by_their_parts_on_a_mesh_of_parts():
    spec = partition_spec(((), ("tensor", "fsdp"), ("tensor[1:2]",)), {"tensor": (2, 2, 2)})
    assert tuple(spec) == (None, ("tensor[1:2]", "tensor[2:4]", "tensor[4:8]", "fsdp"), "tensor[1:2]")


def test_a_mesh_in_parts_has_the_same_devices_and_spec():
    mesh = make_mesh(MeshSpec(tensor=8))
    apart = in_parts(mesh, {"tensor": (2, 4)})
    assert apart.devices.ravel().tolist() == mesh.devices.ravel().tolist()
    assert spec_of(apart) == spec_of(mesh) == MeshSpec(tensor=8)
    assert in_parts(mesh, {}) is mesh


def test_one_program_takes_shardings_of_both_meshes():
    mesh = make_mesh(MeshSpec(tensor=8))
    apart = in_parts(mesh, {"tensor": (2, 4)})
    keys = NamedSharding(apart, P(None, "tensor[1:2]"))
    queries, whole = NamedSharding(mesh, P(None, "tensor")), NamedSharding(mesh, P())

    def scores(q, k):
        made = jnp.einsum("bkg,bk->bkg", q.reshape(3, 2, 4), k)
        made = jax.lax.with_sharding_constraint(made, NamedSharding(apart, P(None, "tensor[1:2]", "tensor[2:8]")))
        return made, jnp.sum(made)

    q, k = np.arange(24, dtype=np.float32).reshape(3, 8), np.arange(6, dtype=np.float32).reshape(3, 2)
    program = jax.jit(scores, in_shardings=(queries, keys), out_shardings=(None, whole))
    made, total = program(jax.device_put(q, queries), jax.device_put(k, keys))
    want = q.reshape(3, 2, 4) * k[:, :, None]
    np.testing.assert_array_equal(made, want)
    assert made.addressable_shards[0].data.shape == (3, 1, 1)
    assert float(total) == want.sum()
