"""Leaves come to be in their shards, in their stored order, with the values they would have on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.initialise import initialise, place
from jaxscale.sharding.layouts import StoredLayout, restore_leaves

LAYOUTS = {1: StoredLayout(logical_shape=(4, 24), dim=1, parts=(16, 4, 4), num_shards=4)}


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshSpec(fsdp=2, tensor=4))


def make() -> Any:
    key = jax.random.key(3)
    return {"bias": jnp.ones((8,), jnp.float32), "fused": jax.random.normal(key, (4, 24), jnp.float32)}


def shardings(mesh: Mesh) -> Any:
    return {"bias": NamedSharding(mesh, P()), "fused": NamedSharding(mesh, P("fsdp", "tensor"))}


def check(made: Any, mesh: Mesh) -> None:
    assert jax.tree.map(lambda x: x.sharding, made) == shardings(mesh)
    assert {shard.data.shape for shard in made["fused"].addressable_shards} == {(2, 6)}
    host = jax.tree.map(np.asarray, made)
    jax.tree.map(np.testing.assert_array_equal, restore_leaves(host, LAYOUTS), jax.tree.map(np.asarray, make()))
    # The first device has the first quarter of each part.
    whole = np.asarray(make()["fused"])
    first = np.concatenate([whole[:2, 0:4], whole[:2, 16:17], whole[:2, 20:21]], axis=1)
    np.testing.assert_array_equal(made["fused"].addressable_shards[0].data, first)


def test_a_tree_is_made_in_its_shards(mesh: Mesh) -> None:
    check(initialise(make, shardings(mesh), LAYOUTS), mesh)


def test_a_tree_is_placed_from_the_host(mesh: Mesh) -> None:
    check(place(jax.tree.map(np.asarray, make()), shardings(mesh), LAYOUTS), mesh)


def test_without_layouts_leaves_are_as_they_are(mesh: Mesh) -> None:
    jax.tree.map(np.testing.assert_array_equal, initialise(make, shardings(mesh)), make())
