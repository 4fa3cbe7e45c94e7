import math

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.store import chunks


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5000), max_size=4).map(tuple),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    divide=st.booleans(),
)
def test_chunks_are_small_and_near_the_limit(shape: tuple[int, ...], itemsize: int, divide: bool) -> None:
    found = chunks.chunk_shape(shape, itemsize, must_divide=divide)
    num_bytes = math.prod(found) * itemsize
    assert len(found) == len(shape)
    assert all(1 <= part <= size for part, size in zip(found, shape, strict=True))
    assert num_bytes <= max(chunks.CHUNK_BYTES, itemsize)
    if divide:
        assert all(size % part == 0 for part, size in zip(found, shape, strict=True))
    elif found != shape:
        assert num_bytes * 2 > chunks.CHUNK_BYTES
        padded = math.prod(-(-size // part) * part for size, part in zip(shape, found, strict=True))
        assert padded < math.prod(shape) * 1.5
