"""`jaxscale explain`: the table, the JSON, and meshes of devices that are not there."""

import json

import pytest

from jaxscale.mesh import MeshSpec
from jaxscale.sharding.plan import ShardingPlan
from launch import cli


def test_it_prints_the_plan_and_reports_it_as_json(tmp_path, capsys):
    report = tmp_path / "plan.json"
    words = ["explain", "two_tower_tiny", "--mesh", "data=2,fsdp=2,tensor=2"]
    assert cli.main([*words, "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "mesh data=2,fsdp=2,tensor=2: 8 devices" in text
    plan = ShardingPlan.from_json(json.loads(report.read_text()))
    assert plan.mesh == MeshSpec(data=2, fsdp=2, tensor=2)
    assert plan.not_understood == ()
    table = {line.split("  ")[0] for line in text.splitlines()}
    assert {leaf.path for leaf in plan.leaves if leaf.role == "parameter"} <= table
    token = next(leaf for leaf in plan.leaves if leaf.path.endswith("embeddings/token/table"))
    assert token.spec == (("tensor",), ("fsdp",))


def test_what_a_job_communicates_by_hand_stands_below_the_plan(capsys):
    words = ["two_tower_tiny", "--contrastive.negatives", "ring"]
    note = "negatives of 16 queries over 8 devices: ring sends 6,976 bytes from each device"
    assert cli.main(["explain", *words, "--mesh", "data=8"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(note)
    assert cli.main(["plan", *words, "--topology", "cpu:8", "--mesh", "data=8", "--no-compile"]) == 0
    assert note in capsys.readouterr().out


def test_devices_that_are_not_there_can_be_explained(capsys):
    words = ["explain", "llama2_7b", "--mesh", "fsdp=16,tensor=16"]
    assert cli.main(words) == 0
    assert "256 devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "gathered where they are read, forward and backward\n"),
        (["--training.grad-accum", "2"], "gathered forward and backward, in each of the 2 microbatches\n"),
        (
            ["--training.grad-accum", "2", "--operation.gather-weights", "step"],
            "gathered once per step, for all of its 2 microbatches\n",
        ),
    ],
)
def test_when_weights_are_gathered_is_said(flags, said, capsys):
    assert cli.main(["explain", "two_tower_tiny", "--mesh", "data=2,fsdp=2", *flags]) == 0
    assert f"weights stored over fsdp are {said}" in capsys.readouterr().out


def test_an_optional_part_that_the_recipe_has_is_flags(capsys):
    words = ["explain", "mixtral_8x7b", "--mesh", "expert=4", "--transformer.experts.num-experts", "4"]
    assert cli.main(words) == 0
    assert "32 4 4096 14336" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("tensor=3,data=2", "nothing is split over tensor=3"),
        ("stage=2", "there is no rule that makes pipeline stages"),
        ("data=3", "global_batch_size=16 must be divisible by data=3; use 15 or 18"),
        ("fdsp=2", "did you mean 'fsdp'?"),
    ],
)
def test_a_mesh_that_does_not_suit_is_refused(capsys, mesh, message):
    assert cli.main(["explain", "two_tower_tiny", "--mesh", mesh]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
