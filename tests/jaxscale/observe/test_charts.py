import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.observe.charts import (
    difference_chart,
    interval_chart,
    law_chart,
    line_chart,
    moving_mean,
    picture,
    scatter_chart,
    smoothing_width,
)


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=30), st.sampled_from([1, 3, 5, 9]))
def test_moving_mean_is_the_mean_of_the_finite_neighbours(values, width):
    half = width // 2
    expected = []
    for i in range(len(values)):
        near = [v for v in values[max(i - half, 0) : i + half + 1] if math.isfinite(v)]
        expected.append(sum(near) / len(near) if near else math.nan)
    np.testing.assert_allclose(moving_mean(values, width), expected, atol=1e-9)


@given(st.integers(1, 100_000))
def test_the_smoothing_width_is_odd_and_small(num_points):
    width = smoothing_width(num_points)
    assert width % 2 == 1
    assert width <= max(1, num_points // 20)


def words(chart):
    """Each label of the wide drawing with its place."""
    wide = chart[: chart.index('class="narrow"')]
    found = re.findall(
        r'<text style="[^"]*?(start|middle|end)?; fill[^"]*" x="([0-9.]+)" y="([0-9.]+)"[^>]*>([^<]*)', wide
    )
    return {text: (anchor, float(x), float(y)) for anchor, x, y, text in found}


def spans(chart, labels):
    placed = words(chart)
    for label in labels:
        anchor, x, y = placed[label]
        length = 6.5 * len(label)
        start = x - length if anchor == "end" else x
        yield y, start, start + length


@pytest.mark.parametrize(
    "marks",
    [
        [(600, "resumed"), (637, "killed")],
        [(10, "first of all"), (20, "second of all"), (30, "third of all"), (40, "fourth of all")],
        [(0, "at the beginning"), (1000, "at the very end")],
        [(500, "the same step"), (500, "and another")],
    ],
)
def test_labels_of_marks_do_not_overlap_and_stay_inside(marks):
    chart = line_chart([("loss", range(1001), np.linspace(4, 2, 1001))], marks, y_label="loss", description="d")
    placed = list(spans(chart, [label for _, label in marks]))
    for i, (y, start, end) in enumerate(placed):
        assert start >= 0
        assert end <= 760
        assert all(y != other or end <= low or start >= high for other, low, high in placed[:i])


def test_a_long_label_is_cut_before_it_takes_the_chart():
    chart = interval_chart([("word " * 20, 0.5, 0.4, 0.6)], x_label="x", description="d")
    assert re.findall(r">(word[^<]*)<", chart) == ["word " * 7 + "wo…", "word " * 3 + "w…"]


def test_a_chart_is_drawn_for_a_wide_and_for_a_narrow_screen():
    chart = interval_chart([("a", 0.5, 0.4, 0.6)], x_label="nDCG@10", description="d")
    assert re.findall(r'class="(\w+)" viewBox="0 0 (\d+) (\d+)"', chart) == [
        ("wide", "760", "106"),
        ("narrow", "340", "106"),
    ]
    assert "0.500" in chart
    assert "nDCG@10" in chart


def test_curves_of_more_than_one_are_told_apart_by_a_legend():
    one = line_chart([("train", [1, 2], [3, 2])], [], y_label="loss", description="d")
    two = line_chart([("train", [1, 2], [3, 2]), ("dev", [1, 2], [3, 2])], [], y_label="loss", description="d")
    assert ">train<" not in one
    assert ">train<" in two
    assert ">dev<" in two


def test_values_that_are_not_finite_do_not_stop_the_drawing():
    chart = line_chart([("loss", [1, 2, 3], [math.nan, math.inf, 1.0])], [], y_label="loss", description="d")
    assert "nan" not in chart


def test_a_law_chart_has_a_dot_for_each_run_a_line_for_each_law_and_labels_inside():
    sizes, law = (1e4, 1e5, 1e6), [(1e4, 1.0), (1e6, 0.5)]
    curves = [("D = 2,048", sizes, (1.1, 0.8, 0.6), law), ("D = 4,096", sizes, (1.0, 0.7, 0.6), ())]
    chart = law_chart(curves, x_label="N", y_label="loss", description="Loss over N.")
    wide = chart[: chart.index('class="narrow"')]
    assert wide.count("<use ") >= 6
    placed = words(chart)
    assert {"D = 2,048", "D = 4,096", "10k", "100k", "1M", "N", "loss"} <= placed.keys()
    places = list(spans(chart, ["D = 2,048", "D = 4,096"]))
    for _, start, end in places:
        assert start >= 0
        assert end <= 760
    assert abs(places[0][0] - places[1][0]) > 15  # both end at one loss
    assert 'aria-label="Loss over N."' in chart


def test_a_picture_is_a_file_of_its_own_with_all_colours_it_names():
    chart = scatter_chart([("a", 1.0, 0.9), ("b", 3.0, 0.5)], x_label="speed", y_label="kept", description="<d>")
    text = picture(chart)
    root = ET.fromstring(text)
    assert root.get("aria-label") == "<d>"
    assert root.get("viewBox").startswith("0 0 760 ")
    for label in ("a", "b", "speed", "kept"):
        assert f">{label}<" in text
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    assert used - set(re.findall(r"^\s*(--[\w-]+):", text, re.MULTILINE)) == set()
    assert len(used) > 3


def bars(chart):
    """The drawn areas of the wide drawing by their colour, each as (x, y) points."""
    wide = chart[: chart.index('class="narrow"')]
    found = re.findall(r'<path d="([^"]*)"[^>]*style="fill: (var\(--[a-z0-9-]+\))', wide)
    return {
        color: np.array([[float(x) for x in pair] for pair in re.findall(r"[ML] ([0-9.]+) ([0-9.]+)", path)])
        for path, color in found
    }


def test_gains_stand_above_the_line_and_losses_below_with_the_greatest_gain_first():
    drawn = bars(difference_chart([-0.5, 0.0, 1.0, 0.25], x_label="queries", y_label="difference", description="d"))
    gains, losses = drawn["var(--series-3)"], drawn["var(--warm)"]
    zero = gains[:, 1].max()
    assert losses[:, 1].min() == pytest.approx(zero, abs=0.1)
    assert zero - gains[:, 1].min() == pytest.approx(2 * (losses[:, 1].max() - zero), abs=0.2)
    assert gains[np.argmin(gains[:, 1]), 0] == pytest.approx(gains[:, 0].min())
    assert losses[np.argmax(losses[:, 1]), 0] > gains[np.argmin(gains[:, 1]), 0]


def test_differences_that_are_all_zero_are_drawn():
    chart = difference_chart([0.0, 0.0], x_label="queries", y_label="difference", description="nothing differs")
    assert 'aria-label="nothing differs"' in chart


def test_signed_intervals_are_written_with_their_sign_about_a_line_at_zero():
    rows = [("up", 0.1, 0.05, 0.2), ("down", -0.1, -0.2, -0.05)]
    placed = words(interval_chart(rows, x_label="difference", description="d", signed=True))
    assert {"+0.100", "-0.100"} <= placed.keys()
    zero = placed.get("0.0", placed.get("0.00"))[1]
    assert placed["+0.100"][1] - zero == pytest.approx(zero - placed["-0.100"][1], abs=0.1)
