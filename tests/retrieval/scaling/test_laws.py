"""Laws of points that follow one, and of points that can't tell one; their table and their page."""

import json
import xml.etree.ElementTree as ET

import pytest

from jaxscale import typed_json
from jaxscale.observe.report import render as render_page
from retrieval.scaling.laws import Laws, Point, fit_laws, render
from retrieval.scaling.page import drawings, study_report

SIZES = {"l1-w32": 12_000, "l1-w64": 50_000, "l2-w64": 100_000, "l2-w128": 400_000, "l4-w192": 1_800_000}
PAIRS = (2048, 4096, 8192, 16384)


def planted(num_params, num_pairs):
    return 0.4 + 40 / num_params**0.4 + 30 / num_pairs**0.5


def points_of(sizes=SIZES, pairs=PAIRS, loss=planted):
    return [
        Point(
            size=name,
            num_layers=int(name[1]),
            width=int(name.partition("w")[2]),
            num_params=num_params,
            num_pairs=num_pairs,
            num_steps=num_pairs // 32,
            contrastive_entropy=loss(num_params, num_pairs),
            state_hash="0" * 64,
        )
        for name, num_params in sizes.items()
        for num_pairs in pairs
    ]


def test_planted_laws_are_found_and_the_largest_run_is_foretold():
    laws = fit_laws(points_of())
    assert laws.refused == {}
    exponents = [term.exponent.value for law in (laws.by_size, laws.by_pairs, laws.joint) for term in law.terms]
    assert exponents == pytest.approx([0.4, 0.5, 0.4, 0.5], rel=1e-3)
    assert laws.by_size.irreducible.value == pytest.approx(0.4 + 30 / 16384**0.5, rel=1e-3)
    assert (laws.by_size.num_points, laws.by_pairs.num_points, laws.joint.num_points) == (5, 4, 20)
    assert laws.held_out.sizes == {"N": 1_800_000.0, "D": 16384.0}
    assert abs(laws.held_out.relative_error) < 1e-4
    assert typed_json.decode(Laws, json.loads(json.dumps(typed_json.encode(laws)))) == laws


def test_what_the_points_can_not_tell_is_named_and_the_rest_is_fitted():
    laws = fit_laws(points_of(pairs=PAIRS[:3]))
    assert laws.by_pairs is None
    assert list(laws.refused) == ["by_pairs"]
    assert "3 runs can't tell a law" in laws.refused["by_pairs"]
    assert laws.joint is not None
    shown = render(points_of(pairs=PAIRS[:3]), laws)
    assert "by_pairs: not fitted: 3 runs" in shown


def test_more_data_that_does_not_help_leaves_the_law_of_size():
    laws = fit_laws(points_of(loss=lambda num_params, num_pairs: planted(num_params, 10**12 / num_pairs)))
    assert set(laws.refused) == {"by_pairs", "joint", "held_out"}
    assert laws.by_size is not None
    assert "held out: not predicted: the loss does not fall as D grows" in render(points_of(), laws)


def test_the_table_and_the_page_say_what_was_found():
    points = points_of()
    laws = fit_laws(points)
    shown = render(points, laws)
    assert "l2-w128 400,000 8,192 256 0.9612" in " ".join(shown.split())
    assert "L(N, D) = 0.4 + 40 / N^0.400 + 30 / D^0.500" in shown
    assert "held out (N = 1,800,000, D = 16,384): measured 0.7603, predicted 0.7603" in shown
    page = render_page(study_report(points, laws))
    assert "L(N, D) = 0.4 + 40 / N^0.400 + 30 / D^0.500" in page
    for label in ("D = 2,048", "N = 1,800,000", "16.4k", "error on the run held out"):
        assert label in page
    assert page == render_page(study_report(points, laws))
    drawn = drawings(points, laws)
    assert {size: ET.fromstring(picture).tag.rpartition("}")[2] for size, picture in drawn.items()} == {
        "N": "svg",
        "D": "svg",
    }
    assert drawn == drawings(points, laws)
    for part in (points[:1], points[:4]):
        assert "not fitted" in render_page(study_report(part, fit_laws(part)))
