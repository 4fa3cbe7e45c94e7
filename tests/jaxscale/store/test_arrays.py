from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from jaxscale.errors import DataError, VerificationError
from jaxscale.store import arrays, chunks

DTYPES = ("bool", "int8", "uint8", "int32", "uint32", "int64", "float16", "bfloat16", "float32", "float64", "complex64")


def values(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(shape) * 100).astype(dtype)


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (0, 4), (4, 0), (2, 3, 5)])
def test_reads_what_was_written(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    expected = values(shape, dtype)
    arrays.write(tmp_path, "a/b", expected)
    found = arrays.read(tmp_path, "a/b")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_chunk_is_its_values_and_their_checksum(tmp_path: Path) -> None:
    import google_crc32c

    expected = values((5, 3))
    arrays.write(tmp_path, "a", expected)
    raw = expected.astype("<f4").tobytes()
    assert (tmp_path / "a/c/0/0").read_bytes() == raw + google_crc32c.value(raw).to_bytes(4, "little")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    num_rows=st.integers(1, 40), width=st.integers(1, 20), bounds=st.tuples(st.integers(-50, 50), st.integers(-50, 50))
)
def test_row_slices_are_numpys(
    tmp_path_factory, small_chunks, num_rows: int, width: int, bounds: tuple[int, int]
) -> None:
    directory, expected = tmp_path_factory.mktemp("slices"), values((num_rows, width))
    arrays.write(directory, "a", expected)
    handle = arrays.open(directory, "a")
    assert (handle.shape, handle.dtype, len(handle)) == (expected.shape, expected.dtype, num_rows)
    np.testing.assert_array_equal(handle[bounds[0] : bounds[1]], expected[bounds[0] : bounds[1]])
    np.testing.assert_array_equal(handle[num_rows - 1], expected[num_rows - 1])


@pytest.mark.parametrize("written", [PartitionSpec(), PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))])
@pytest.mark.parametrize("read", [PartitionSpec(), PartitionSpec("b", "a"), PartitionSpec(("b", "a"))])
def test_any_sharding_to_any_other(tmp_path: Path, small_chunks, written: PartitionSpec, read: PartitionSpec) -> None:
    expected = values((16, 8))
    arrays.write(tmp_path, "a", jax.device_put(expected, NamedSharding(mesh(), written)))
    sharding = NamedSharding(mesh(), read)
    found = arrays.read_sharded(tmp_path, "a", sharding)
    assert found.sharding == sharding
    for shard in found.addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])


def test_files_do_not_depend_on_the_mesh(tmp_path: Path, small_chunks) -> None:
    expected = values((16, 8))
    arrays.write(tmp_path, "numpy", expected)
    arrays.write(tmp_path, "jax", jax.device_put(expected, NamedSharding(mesh(), PartitionSpec("a", "b"))))
    files = sorted(p.relative_to(tmp_path / "numpy") for p in (tmp_path / "numpy").rglob("*") if p.is_file())
    assert len(files) > 2
    for file in files:
        assert (tmp_path / "numpy" / file).read_bytes() == (tmp_path / "jax" / file).read_bytes()


class Pair(NamedTuple):
    first: Any
    second: Any


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    tree = {"a": Pair(values((3,)), [values((2, 2), "bfloat16"), jnp.int32(5)]), "b": {"c": 1.5, "0": np.int8(3)}}
    arrays.write_tree(tmp_path, tree)
    found = arrays.read_tree(tmp_path, tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert arrays.array_names(tmp_path) == ["a/first", "a/second/0", "a/second/1", "b/0", "b/c"]
    nested = arrays.read_tree(tmp_path)
    assert nested["b"]["c"] == 1.5
    assert nested["a"]["second"]["0"].dtype == ml_dtypes.bfloat16


def test_trees_are_read_onto_shardings(tmp_path: Path) -> None:
    tree = {"w": values((8, 4)), "b": values((4,))}
    arrays.write_tree(tmp_path, tree)
    shardings = {"w": NamedSharding(mesh(), PartitionSpec("a")), "b": NamedSharding(mesh(), PartitionSpec())}
    found = arrays.read_tree(tmp_path, tree, shardings)
    assert jax.tree.map(lambda x: x.sharding, found) == shardings
    one = arrays.read_tree(tmp_path, tree, shardings["b"])
    assert one["w"].sharding == shardings["b"]
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (values((4, 8)), r"float32\[8, 4\], expected float32\[4, 8\]"),
        (values((8, 4), "float16"), r"float32\[8, 4\], expected float16"),
    ],
)
def test_another_shape_or_dtype_is_refused(tmp_path: Path, leaf: np.ndarray, message: str) -> None:
    arrays.write_tree(tmp_path, {"w": values((8, 4))})
    with pytest.raises(DataError, match=message):
        arrays.read_tree(tmp_path, {"w": leaf})
    with pytest.raises(DataError, match="there is no array 'v'"):
        arrays.read_tree(tmp_path, {"v": leaf})


def test_what_can_not_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="key_data"):
        arrays.write(tmp_path, "a", jax.random.key(0))
    with pytest.raises(DataError, match="can't be written"):
        arrays.write(tmp_path, "a", np.array(["text"]))
    for name in ("", "a//b", "../a", "a/.", "a\nb", "a/zarr.json"):
        with pytest.raises(DataError, match="can't be the name"):
            arrays.write(tmp_path, name, values((1,)))
    with pytest.raises(DataError, match="non-empty path"):
        arrays.write_tree(tmp_path, values((1,)))


def test_64_bits_are_not_truncated_silently(tmp_path: Path) -> None:
    arrays.write(tmp_path, "a", np.arange(3))
    with pytest.raises(DataError, match="jax_enable_x64"):
        arrays.read_sharded(tmp_path, "a", NamedSharding(mesh(), PartitionSpec()))


def test_chunks_of_zeros_are_there_and_a_missing_one_is_not_zeros(tmp_path: Path, small_chunks) -> None:
    arrays.write(tmp_path, "a", np.zeros((32, 4), np.float32))
    np.testing.assert_array_equal(arrays.read(tmp_path, "a"), np.zeros((32, 4)))
    (tmp_path / "a/c/3/0").unlink()
    np.testing.assert_array_equal(arrays.open(tmp_path, "a")[:12], np.zeros((12, 4)))
    with pytest.raises(VerificationError, match=r"a/c/3/0 is missing"):
        arrays.read(tmp_path, "a")


@pytest.mark.parametrize("byte", [0, 10, -1, -4])
def test_a_flipped_bit_names_its_file(tmp_path: Path, small_chunks, byte: int) -> None:
    arrays.write(tmp_path, "a", values((32, 4)))
    chunk = tmp_path / "a/c/5/0"
    content = bytearray(chunk.read_bytes())
    content[byte] ^= 4
    chunk.write_bytes(content)
    for read in (
        lambda: arrays.read(tmp_path, "a"),
        lambda: arrays.open(tmp_path, "a")[20:24],
        lambda: arrays.read_sharded(tmp_path, "a", NamedSharding(mesh(), PartitionSpec("a"))),
        lambda: arrays.read_tree(tmp_path),
    ):
        with pytest.raises(VerificationError, match="a/c/5/0 does not agree"):
            read()


def test_a_truncated_chunk_names_its_file(tmp_path: Path) -> None:
    arrays.write(tmp_path, "a", values((32, 4)))
    (tmp_path / "a/c/0/0").write_bytes((tmp_path / "a/c/0/0").read_bytes()[:-3])
    with pytest.raises(VerificationError, match="a/c/0/0 does not agree"):
        arrays.read(tmp_path, "a")
