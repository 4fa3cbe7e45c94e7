"""Batches that grow: each begins with the sample after the last one of the batch before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.errors import UsageError
from jaxscale.train.batch_sizes import BatchSizes


@given(
    later=st.dictionaries(st.integers(1, 30), st.integers(1, 9), max_size=4),
    first=st.integers(1, 9),
)
def test_every_batch_begins_where_the_one_before_ends(later, first):
    stages = ((0, first), *sorted(later.items()))
    sizes = BatchSizes(stages=stages)
    sample = 0
    for number in range(40):
        expected = [size for start, size in stages if start <= number][-1]
        assert (sizes.first_sample(number), sizes.size(number)) == (sample, expected)
        sample += expected
    assert sizes.distinct == tuple(sorted({size for _, size in stages}))


def test_refuses_stages_that_do_not_cover_all_batches():
    for stages in ((), ((1, 4),), ((0, 4), (0, 8)), ((0, 4), (5, 8), (3, 16)), ((0, 0),)):
        with pytest.raises(UsageError, match="stages="):
            BatchSizes(stages=stages)
    with pytest.raises(UsageError, match="number=-1"):
        BatchSizes(stages=((0, 4),)).size(-1)
