"""`jaxscale plan diff`: what two plans tell and is not the same; what is no plan ends with 3."""

import json
from pathlib import Path

import pytest

from launch import cli
from launch.plan_difference import differences, read_plan

TINY = f"{Path(__file__).parent / 'planned_recipes.py'}:tiny_decoder"


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Files that the verbs wrote, by a name each."""
    folder = tmp_path_factory.mktemp("plans")
    lines = {
        "fsdp": ["plan", TINY, "--topology", "h100:8", "--mesh", "fsdp=8"],
        "tensor": ["plan", TINY, "--topology", "h100:8", "--mesh", "fsdp=4,tensor=2"],
        "explained": ["explain", TINY, "--mesh", "fsdp=4,tensor=2"],
    }
    for name, words in lines.items():
        assert cli.main([*words, "--json", str(folder / f"{name}.json")]) == 0
    return {name: folder / f"{name}.json" for name in lines}


def by_name(first, second):
    found = differences(read_plan(first), read_plan(second))
    return {(one.section, one.name): (one.before, one.after) for one in found}


def test_a_plan_does_not_differ_from_itself(plans, capsys):
    assert cli.main(["plan", "diff", str(plans["fsdp"]), str(plans["fsdp"])]) == 0
    assert "nothing differs" in capsys.readouterr().out


def test_every_figure_that_changed_is_that_of_the_files(plans):
    found = by_name(plans["fsdp"], plans["tensor"])
    before, after = (json.loads(plans[name].read_text())["predicted"] for name in ("fsdp", "tensor"))
    assert found["step", "mesh"] == ("fsdp=8", "fsdp=4,tensor=2")
    for name in ("parameters", "optimizer", "batch"):
        assert found["memory", name] == (before["memory"][name], after["memory"][name])

    def sent(plan, kind, axis):
        chosen = [c for c in plan["traffic"]["collectives"] if (c["kind"], c["axes"]) == (kind, [axis])]
        return sum(c["bytes_moved"] for c in chosen)

    assert found["bytes sent", "all_reduce over tensor"] == (None, sent(after, "all_reduce", "tensor"))
    gathered = tuple(sent(plan, "all_gather", "fsdp") for plan in (before, after))
    assert found["bytes sent", "all_gather over fsdp"] == gathered
    assert found["step time", "ici"] == (before["bound"]["ici_s"], after["bound"]["ici_s"])
    assert ("step", "topology") not in found
    assert ("FLOPs", "model") not in found


def test_leaves_are_those_whose_specs_changed(plans):
    found = {name for section, name in by_name(plans["fsdp"], plans["tensor"]) if section == "leaves"}
    expected = set()
    leaves = [
        {
            (leaf["role"], leaf["path"]): leaf["spec"]
            for leaf in json.loads(plans[name].read_text())["sharding"]["leaves"]
        }
        for name in ("fsdp", "tensor")
    ]
    for (role, path), spec in leaves[0].items():
        if spec != leaves[1][role, path]:
            expected.add(f"{role} {path}")
    assert found == expected
    assert expected


def test_what_explain_wrote_has_leaves_alone(plans, capsys, tmp_path):
    found = by_name(plans["fsdp"], plans["explained"])
    assert {section for section, _ in found} <= {"step", "leaves"}
    assert found["step", "mesh"] == ("fsdp=8", "fsdp=4,tensor=2")
    same = by_name(plans["tensor"], plans["explained"])
    assert not {name for section, name in same if section == "leaves"}
    report = tmp_path / "diff.json"
    words = ["plan", "diff", str(plans["fsdp"]), str(plans["explained"]), "--json", str(report)]
    assert cli.main(words) == 0
    assert f"{plans['explained']} has no figures: `explain` wrote it" in capsys.readouterr().out
    assert {row["section"] for row in json.loads(report.read_text())["differences"]} <= {"step", "leaves"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("{", "is no JSON"),
        ("[1]", "is no plan: expected what `jaxscale plan --json` or `explain --json` wrote, got a list"),
        ('{"error": "plan has not ended"}', "got the fields error"),
        ('{"predicted": {}}', "write it again with this version's `jaxscale plan --json`"),
        ('{"leaves": []}', "write it again with this version's `jaxscale plan --json`"),
    ],
)
def test_what_is_no_plan_ends_with_3(plans, capsys, tmp_path, text, message):
    file = tmp_path / "other.json"
    if text is not None:
        file.write_text(text)
    assert cli.main(["plan", "diff", str(plans["fsdp"]), str(file)]) == 3
    shown = capsys.readouterr().err
    assert message in shown
    assert "other.json" in shown


def test_plan_still_takes_a_recipe(capsys):
    assert cli.main(["plan", "differ", "--topology", "cpu:8"]) == 2
    assert "unknown recipe 'differ'" in capsys.readouterr().err
