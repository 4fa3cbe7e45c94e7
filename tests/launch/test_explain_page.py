"""The page that `jaxscale explain --html` draws."""

import html
import re

import pytest

from jaxscale.cost.chips import CHIPS
from jaxscale.cost.memory import MemoryUse
from jaxscale.mesh import MeshSpec
from jaxscale.observe.report import render
from jaxscale.sharding.graph import NotUnderstood
from jaxscale.sharding.layouts import StoredLayout
from jaxscale.sharding.limits import DEFAULT_LIMITS
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan
from launch import cli
from launch.explain_page import card_of, explain_page

MESH = MeshSpec(fsdp=4, tensor=2)


def leaf(path: str, **changes) -> PlannedLeaf:
    fields = {
        "role": "parameter",
        "path": path,
        "shape": (64, 48),
        "dtype": "float32",
        "spec": (("fsdp",), ("tensor",)),
        "rules": ("fused projection", "fully shard"),
        "reasons": ("it has parts", "the largest"),
        "rejected": ("dim 9: too odd",),
        "layout": StoredLayout(logical_shape=(64, 48), dim=1, parts=(16, 16, 16), num_shards=2),
        "bytes_per_device": 1536,
    }
    return PlannedLeaf(**{**fields, **changes})


def page(leaves, not_understood=(), peak: int = 2**30, chip: str = "v5e") -> str:
    plan = ShardingPlan(
        mesh=MESH, limits=DEFAULT_LIMITS, leaves=tuple(leaves), activations=(), not_understood=not_understood
    )
    memory = MemoryUse(
        parameters=peak,
        optimizer=0,
        batch=0,
        gradients=0,
        kept=0,
        temporaries=0,
        all_kept=0,
        moment="update",
        tensors=(),
    )
    return render(explain_page("mine", plan, memory, CHIPS[chip], {}))


def words(text: str) -> str:
    """What a reader sees: without the style sheet, tags dropped."""
    body = text.partition("</style>")[2]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body)))


def test_a_leaf_is_drawn_with_its_rules_what_was_rejected_and_its_order():
    seen = words(page([leaf("a/b")]))
    for expected in (
        "a/b",
        "64fsdp 4 × 48tensor 2 float32",
        "1.5 KiB on each device, 1/8 of it; no two devices hold the same part",
        "fused projection it has parts",
        "fully shard the largest",
        "rejected dim 9: too odd",
        "3 parts of 16, 16, 16; each device has 1/2 of every part",
    ):
        assert expected in seen, expected


def test_copies_are_said_and_whole_leaves_stand_in_a_table():
    half = leaf("half", spec=((), ("tensor",)), layout=None)
    whole = leaf("whole", spec=((), ()), layout=None, rules=("small",), reasons=("it is small",))
    seen = words(page([half, whole]))
    assert "1/2 of it; 4 devices hold the same part" in seen
    assert "1 whole on every device" in seen
    assert "small it is small" in seen


def test_state_that_follows_is_counted_and_not_drawn():
    text = page([leaf("a"), leaf("mu/a", role="optimizer", rules=("follows",), reasons=("made from a",))])
    assert "1 arrays are cut and stored as the parameters" in words(text)
    assert "mu/a" not in words(text)


@pytest.mark.parametrize(
    ("peak", "chip", "verdict"),
    [
        (2**30, "v5e", "It fits: 1 GiB at the peak is 6% of the 15.8 GiB"),
        (2**20, "v5e", "It fits: 1 MiB at the peak is under 1% of the 15.8 GiB"),
        (20 * 2**30, "v5e", "It does not fit: 20 GiB at the peak is 127% of the 15.8 GiB"),
        (2**30, "cpu", "1 GiB at the peak; how much a cpu device has is not known."),
    ],
)
def test_the_memory_is_held_against_the_chips(peak, chip, verdict):
    assert verdict in words(page([leaf("a")], peak=peak, chip=chip))


def test_it_ends_with_what_was_not_understood():
    assert words(page([leaf("a")])).endswith("Nothing: every operation of the step was followed. ")
    found = NotUnderstood(primitive="fft", count=2, source="mine.py:7")
    assert words(page([leaf("a")], (found,))).endswith("fft, 2 times, first at mine.py:7 ")


def test_a_leafs_name_is_text():
    text = page([leaf("<script>alert(1)</script>")])
    assert "<script>" not in text
    assert "alert(1)" in text


def test_a_part_of_an_axis_counts_its_own_ways():
    card = card_of(leaf("kv", spec=((), ("tensor[1:2]",)), layout=None), MeshSpec(tensor=8))
    assert [(cut.label, cut.ways) for dim in card.dims for cut in dim.cuts] == [("tensor[1:2]", 2)]


def test_the_verb_draws_a_page_that_needs_no_network(tmp_path, capsys):
    path = tmp_path / "pages" / "plan.html"
    mesh = ["--mesh", "data=2,fsdp=2,tensor=2"]
    assert cli.main(["explain", "two_tower_tiny", *mesh, "--html", str(path), "--chip", "h100"]) == 0
    assert f"drawn in {path}" in capsys.readouterr().out
    text = path.read_text()
    assert "Where two_tower_tiny lives" in text
    assert "h100" in words(text)
    assert not re.search(r"<script|<link|src=|@import|url\(", text)
    assert text.count("<article") > 5


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [(["--chip", "v99"], 2, "unknown chip 'v99'"), (["--html", "/proc/plan.html"], 4, "can't be written")],
)
def test_what_can_not_be_drawn_is_refused(capsys, flags, code, message):
    words = ["explain", "two_tower_tiny", "--mesh", "data=2", *flags]
    assert cli.main(words) == code
    assert message in capsys.readouterr().err
