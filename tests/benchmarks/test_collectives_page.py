"""The page lists the rows as they are, in the order asked for."""

from benchmarks.collectives_page import page


def row(case, axes, derived, by_hand, **more):
    return {
        "figure": f"collectives.{case}.{axes}",
        "case": case,
        "what": f"the {case}",
        "topology": "v5e:4x4",
        "mesh": "fsdp=4,tensor=4",
        "derived": derived,
        "by_hand": by_hand,
        "redco": 4 * derived,
        "closed_form": 0.0,
        "ratio_to_by_hand": derived / by_hand,
        "ratio_to_redco": 0.25,
        "best_by_hand": "specs",
        "jax": "0.10.2",
        "libtpu": "0.0.52",
        **more,
    }


def test_page():
    ways = {"every_way_by_hand": {"specs": 1000.0, "others": 2000.0}}
    rows = [
        row("second", "all", 1100.0, 1000.0, **ways),
        row("first", "tensor", 3.0, 3.0),
        row("first", "all", 3.0, 3.0, **ways),
    ]
    lines = page(rows, ["first", "second"]).splitlines()
    assert "## v5e:4x4 as fsdp=4,tensor=4" in lines
    tables = [line for line in lines if line.startswith(("| first", "| second"))]
    assert tables == [
        "| first: the first | 3.0 | 3.0 | 1.000 | 12.0 | 0.250 | 0.0 |  |",
        "| second: the second | 1,100.0 | 1,000.0 | 1.100 | 4,400.0 | 0.250 | 0.0 |  |",
        "| first | tensor 3.00 / 3.00 / 0.00 | specs (of specs 1,000.0, others 2,000.0) |",
        "| second |  | specs (of specs 1,000.0, others 2,000.0) |",
    ]
