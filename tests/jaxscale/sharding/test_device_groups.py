"""From groups of devices to mesh axes: every form that XLA writes, every subset of axes, parts of an axis."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.sharding.device_groups import axes_spanned, parse_groups, parse_pairs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("[4,2]<=[2,2,2]T(2,1,0)", [[0, 4], [2, 6], [1, 5], [3, 7]]),
        ("mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        # Parts of an axis: 2 values with 1, 2 or 4 values before them.
        ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ],
)
def test_the_forms_of_replica_groups(text, expected):
    attributes = f", channel_id=3, replica_groups={text}, dimensions={{0}}, use_global_device_ids=true"
    found = parse_groups(attributes, 8)
    assert sorted(map(sorted, found.tolist())) == sorted(expected)


def test_no_groups_and_no_pairs():
    assert parse_groups("dimensions={0}", 8) is None
    assert parse_pairs("replica_groups={{0,1}}") is None
    assert parse_pairs("source_target_pairs={}") == []


def groups_of(names, axes):
    """The groups in which only `names` vary, by going through every device."""
    groups = {}
    for position, place in enumerate(itertools.product(*map(range, axes.values()))):
        key = tuple(i for axis, i in zip(axes, place, strict=True) if axis not in names)
        groups.setdefault(key, []).append(position)
    return np.array(list(groups.values()))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4), st.data())
def test_every_subset_of_axes_is_found_again(sizes, data):
    axes = dict(zip("abcd", sizes, strict=False))
    names = tuple(name for name in axes if axes[name] > 1 and data.draw(st.booleans()))
    groups = groups_of(names, axes)
    assert groups.shape[1] == math.prod(axes[name] for name in names)
    shuffled = groups[:, data.draw(st.permutations(range(groups.shape[1])))]
    assert axes_spanned(shuffled, axes) == names


def test_a_part_of_an_axis_is_in_that_axis():
    axes = {"fsdp": 2, "tensor": 8}
    assert axes_spanned(np.array([[0, 1], [2, 3], [4, 5], [6, 7]]), axes) == ("tensor",)
    assert axes_spanned(np.array([[0, 8]]), axes) == ("fsdp",)
    assert axes_spanned(np.array([[0, 9]]), axes) == ("fsdp", "tensor")
    with pytest.raises(IndexError):
        axes_spanned(np.array([[0, 16]]), axes)
