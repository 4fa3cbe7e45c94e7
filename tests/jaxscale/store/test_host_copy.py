import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxscale.errors import DataError
from jaxscale.store.host_copy import HostCopier, without_copy


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def only_part(chunked) -> np.ndarray:
    ((index, part),) = chunked.parts
    assert index == tuple(slice(0, size) for size in chunked.shape)
    return part


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("a"), PartitionSpec("b", "a")])
def test_copies_share_no_memory(spec: PartitionSpec) -> None:
    value = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    tree = {"jax": jax.device_put(value, NamedSharding(mesh(), spec)), "numpy": value, "number": 3}
    for name, chunked in HostCopier().copy(tree).items():
        part = only_part(chunked)
        np.testing.assert_array_equal(part, value if name != "number" else 3)
        assert not np.shares_memory(part, value)
        for shard in tree["jax"].addressable_shards:
            assert not np.shares_memory(part, np.asarray(shard.data))


def test_the_memory_is_kept_for_a_state_of_the_same_shapes() -> None:
    copier = HostCopier()
    first = only_part(copier.copy({"a": np.ones((3, 4), np.float32)})["a"])
    second = only_part(copier.copy({"a": jnp.full((3, 4), 2.0)})["a"])
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(second, 2.0)
    for other in (np.ones((4, 3), np.float32), np.ones((3, 4), np.int32)):
        third = only_part(copier.copy({"a": other})["a"])
        assert (third.shape, third.dtype) == (other.shape, other.dtype)
        assert not np.shares_memory(second, third)


def test_without_copy_gives_the_same_values() -> None:
    value = np.arange(64, dtype=np.float32).reshape(8, 8)
    tree = {"jax": jax.device_put(value, NamedSharding(mesh(), PartitionSpec("a"))), "numpy": value}
    found = without_copy(tree)
    np.testing.assert_array_equal(only_part(found["jax"]), value)
    assert np.shares_memory(only_part(found["numpy"]), value)


def test_keys_are_refused() -> None:
    with pytest.raises(DataError, match="key_data"):
        HostCopier().copy({"key": jax.random.key(0)})
