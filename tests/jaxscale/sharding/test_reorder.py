"""Leaves on a mesh change their order in their shards, and come back bit for bit."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.layouts import StoredLayout
from jaxscale.sharding.reorder import restore_on_mesh, store_on_mesh


def on_mesh(value: np.ndarray, *spec: Any) -> jax.Array:
    return jax.device_put(value, NamedSharding(make_mesh(MeshSpec(fsdp=2, tensor=4)), P(*spec)))


@pytest.mark.parametrize("parts", [(8, 8, 8), (16, 4, 4)])
def test_the_stored_order_is_the_layouts_and_the_way_back_exact(parts: tuple[int, ...]) -> None:
    layout = StoredLayout(logical_shape=(4, 24), dim=1, parts=parts, num_shards=4)
    host = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    tree = {"bias": on_mesh(host[0]), "fused": on_mesh(host, "fsdp", "tensor")}
    stored = store_on_mesh(tree, {1: layout})
    # By hand: shard t has piece t of every part.
    starts = np.cumsum((0, *parts[:-1]))
    pieces = [
        host[:, start + t * (size // 4) :][:, : size // 4]
        for t in range(4)
        for start, size in zip(starts, parts, strict=True)
    ]
    np.testing.assert_array_equal(stored["fused"], np.concatenate(pieces, axis=1))
    restored = restore_on_mesh(stored, {1: layout})
    np.testing.assert_array_equal(restored["fused"], host)
    assert stored["fused"].sharding == restored["fused"].sharding == tree["fused"].sharding
    assert stored["bias"] is tree["bias"]
