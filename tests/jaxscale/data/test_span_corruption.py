"""Span corruption: what is cut out is what is asked for, row by row, beside a plain reconstruction."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.span_corruption import SpanCorruption, corrupt_spans
from jaxscale.errors import UsageError

SENTINELS = tuple(range(1099, 999, -1))
START, END = 0, 1
T5 = SpanCorruption()


def corrupted(tokens, sample_ids, config=T5, seed=0):
    return corrupt_spans(
        tokens, np.asarray(sample_ids), config=config, sentinel_ids=SENTINELS, start_id=START, end_id=END, seed=seed
    )


def rows(num_rows, length):
    return np.random.default_rng(7).integers(2, 1000, (num_rows, length), dtype=np.int32)


def rejoined(source, target):
    """The text that a source and a target were made of: each sentinel of the source replaced by its span."""
    assert source[-1] == target[-1] == END
    spans, sentinel = {}, None
    for token in target[:-1]:
        if token in SENTINELS:
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])
    assert all(spans.values())
    assert [token for token in source if token in SENTINELS] == list(spans)
    return [piece for token in source[:-1] for piece in spans.get(token, [token])]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 90),
    rate=st.floats(0.01, 0.99),
    mean=st.floats(1.0, 8.0),
    seed=st.integers(0, 2**63),
)
def test_putting_the_spans_back_gives_the_text(length, rate, mean, seed):
    config = SpanCorruption(rate=rate, mean_span_tokens=mean)
    tokens = rows(3, length)
    made = corrupted(tokens, [0, 10**12, 5], config, seed)
    assert made["sources"].shape == (3, config.source_length(length))
    assert made["targets"].shape == made["tokens"].shape == (3, config.target_length(length))
    assert {leaf.dtype for leaf in made.values()} == {np.dtype(np.int32)}
    for row in range(3):
        assert rejoined(made["sources"][row].tolist(), made["targets"][row].tolist()) == tokens[row].tolist()
        assert made["tokens"][row].tolist() == [START, *made["targets"][row, :-1].tolist()]


def test_a_row_is_the_same_whoever_asks_for_it():
    tokens, samples = rows(8, 64), np.arange(100, 108)
    whole = corrupted(tokens, samples)
    part = corrupted(tokens[5:7], samples[5:7])
    for name, leaf in part.items():
        np.testing.assert_array_equal(leaf, whole[name][5:7])


def test_rows_and_seeds_are_cut_in_ways_of_their_own():
    tokens = np.repeat(rows(1, 64), 50, axis=0)
    assert len(np.unique(corrupted(tokens, np.arange(50))["sources"], axis=0)) == 50
    again = corrupted(tokens, np.arange(50), seed=1)["sources"]
    assert (again != corrupted(tokens, np.arange(50))["sources"]).any(axis=1).all()


def test_every_way_to_cut_is_as_likely_as_any_other():
    # 5 tokens, 2 of them cut out in 2 spans: 3 kept tokens in 2 runs, so the kept runs are (1, 2) or (2, 1).
    config = SpanCorruption(rate=0.4, mean_span_tokens=1.0)
    made = corrupted(np.repeat(rows(1, 5), 4000, axis=0), np.arange(4000), config)
    counts = Counter(map(tuple, made["sources"].tolist()))
    assert len(counts) == 2
    assert all(abs(count - 2000) < 5 * (4000 * 0.25) ** 0.5 for count in counts.values())


def test_t5s_own_lengths():
    # Rows of 568 tokens for sources of 512 and targets of 114: T5's own numbers.
    assert T5.row_length(source_length=512) == 568
    assert (T5.source_length(568), T5.target_length(568)) == (512, 114)
    assert T5.source_length(569) > 512


def test_the_same_in_every_version():
    made = corrupted(np.arange(10, 30, dtype=np.int32)[None], [3], SpanCorruption(rate=0.25), seed=5)
    assert made["targets"].tolist() == [[1099, 20, 1098, 26, 27, 28, 29, 1]]


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("rate=0", lambda: SpanCorruption(rate=0.0)),
        ("rate=1", lambda: SpanCorruption(rate=1.0)),
        ("mean_span_tokens=0.5", lambda: SpanCorruption(mean_span_tokens=0.5)),
        ("source_length=2 ", lambda: T5.row_length(source_length=2)),
        ("a row of 1 tokens", lambda: corrupted(rows(1, 1), [0])),
        ("there are 100 sentinels", lambda: corrupted(rows(1, 3000), [0])),
    ],
)
def test_refusals(message, call):
    with pytest.raises(UsageError, match=message):
        call()
