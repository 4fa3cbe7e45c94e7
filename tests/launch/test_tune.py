"""`jaxscale tune`: ranked by prediction, proven by compiling, with the smallest slice; what can't be is said."""

import dataclasses
import json
import types
from pathlib import Path

import pytest

from jaxscale.cost.compiled import CompiledMemory, CompiledStep, OutOfMemory
from jaxscale.cost.tune_candidates import Settings
from jaxscale.errors import UsageError
from jaxscale.nn.config import ExpertsConfig
from launch import cli, recipes
from launch.compile_recipe import CompiledRecipe
from launch.tuned_job import flags_of, space_of, with_settings
from launch.verbs import tune

RECIPES = Path(__file__).parent / "planned_recipes.py"
TINY = f"{RECIPES}:tiny_decoder"
LARGE = f"{RECIPES}:far_too_large"


def compiled(fits):
    memory = CompiledMemory(arguments=1, outputs=1, aliased=0, temporaries=1, code=0)
    refused = OutOfMemory(needed_bytes=2**40, available_bytes=2**30, message="RESOURCE_EXHAUSTED: too large")
    step = CompiledStep(
        memory=memory if fits else None,
        out_of_memory=None if fits else refused,
        collectives=(),
        loops_known=True,
        xla_flops=None,
        buffers=(),
        compile_s=1.0,
        versions={},
    )
    return CompiledRecipe(step=step, rematerialized=())


@pytest.fixture
def compiler(monkeypatch):
    """Stands for the compiler; `asked` has what it was asked, and what `refuses` says does not fit."""
    stands = types.SimpleNamespace(asked=[], refuses=lambda request: False)

    def compile_recipe(request):
        stands.asked.append(request)
        return compiled(not stands.refuses(request))

    monkeypatch.setattr(tune, "compile_recipe", compile_recipe)
    return stands


def run(capsys, tmp_path, *words, code=0):
    report = tmp_path / "tune.json"
    assert cli.main(["tune", *words, "--json", str(report)]) == code
    return json.loads(report.read_text()), capsys.readouterr()


@pytest.mark.slow
def test_the_best_of_the_ranking_are_compiled_with_their_settings(compiler, capsys, tmp_path):
    found, shown = run(capsys, tmp_path, TINY, "--topology", "v5e:2x2")
    ranking, proven = found["ranking"], found["proven"]
    times = [row["step_s"] for row in ranking]
    assert times == sorted(times)
    assert [row["mesh"] for row in proven] == [row["mesh"] for row in ranking[:3]]
    assert [request.mesh for request in compiler.asked] == [row["mesh"] for row in ranking[:3]]
    for request, row in zip(compiler.asked, ranking, strict=False):
        assert request.job["training"]["grad_accum"] == row["settings"]["num_microbatches"]
        assert request.job["remat"] == {"full": True, "matmuls": "matmuls", "none": False}[row["settings"]["remat"]]
    assert found["best"]["mesh"] in [row["mesh"] for row in proven]
    assert "proven by compiling" in shown.out
    assert "of them" not in shown.err
    assert found["smallest"]["topology"] == "v5e:1x1"
    assert any(
        command.startswith(f"the best: jaxscale plan {TINY} --topology v5e:2x2") for command in found["commands"]
    )


@pytest.mark.slow
def test_what_does_not_fit_compiled_comes_again_with_more_microbatches(compiler, capsys, tmp_path):
    compiler.refuses = lambda request: request.job["training"]["grad_accum"] == 1
    found, _ = run(capsys, tmp_path, TINY, "--topology", "v5e:2x2", "--top", "8")
    tried = [(row["mesh"], row["settings"]["num_microbatches"], row["fits"]) for row in found["proven"]]
    assert tried[0] == (found["ranking"][0]["mesh"], 1, False)
    assert {number == 1 for _, number, fits in tried if fits} == {False}
    refused = {mesh for mesh, _, fits in tried if not fits}
    assert {mesh for mesh, _, fits in tried if fits} <= refused
    assert found["best"]["settings"]["num_microbatches"] == 2


@pytest.mark.slow
def test_nothing_that_compiles_ends_with_7(compiler, capsys, tmp_path):
    compiler.refuses = lambda request: True
    found, shown = run(capsys, tmp_path, TINY, "--topology", "v5e:2x2", code=7)
    assert found["best"] is None
    assert len(compiler.asked) == 6
    assert "does not fit on v5e:2x2 with any mesh" in shown.err


def test_gpus_are_predicted_and_it_says_so(compiler, capsys, tmp_path):
    found, shown = run(capsys, tmp_path, TINY, "--topology", "h100:2")
    assert compiler.asked == []
    assert "not compiled: programs for GPUs can't be compiled without one" in shown.out
    assert found["best"] == found["ranking"][0]
    assert found["proven"] == []


def test_what_is_too_large_everywhere_ends_with_7_and_says_why(compiler, capsys, tmp_path):
    found, shown = run(capsys, tmp_path, LARGE, "--topology", "v5e:2x2", "--no-compile", code=7)
    assert "no smaller slice fits either" in shown.out
    assert found["ranking"] == []
    # Six meshes, and four more that split positions, with three remats each; the state alone is too large for all.
    assert [(refusal["count"], refusal["why"]) for refusal in found["refusals"]] == [
        (30, "does not fit with any number of microbatches")
    ]
    assert found["exit_code"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((TINY,), "tune needs --topology"),
        ((TINY, "--topology", "v9:2x2"), "unknown chip 'v9'"),
        ((TINY, "--topology", "v5e:2x2", "--top", "0"), "top=0 must be at least 1"),
        ((f"{RECIPES}:nothing_to_plan", "--topology", "cpu:8"), "a str, which has no training step to tune"),
    ],
)
def test_what_is_refused(compiler, capsys, words, message):
    assert cli.main(["tune", *words]) == 2
    assert message in capsys.readouterr().err
    assert compiler.asked == []


@pytest.mark.slow
def test_on_emulated_devices_the_best_are_compiled(capsys, tmp_path):
    found, shown = run(capsys, tmp_path, TINY, "--topology", "cpu:8", "--top", "2")
    assert [row["fits"] for row in found["proven"]] == [True, True]
    for row in found["proven"]:
        assert row["compiled"]["step"]["memory"]["temporaries"] > 0
        assert row["compiled"]["step"]["collectives"]
    assert "the smallest slice that fits is not known" in shown.out


def test_a_job_without_a_field_that_is_tuned_is_refused():
    with pytest.raises(UsageError, match="BareJob has no field `training` of type TrainingIdentity"):
        space_of(recipes.load(f"{RECIPES}:bare"))


def test_settings_are_the_jobs_own_fields():
    job = recipes.load(TINY)
    settings = Settings(remat="matmuls", num_microbatches=4, optimizer_dtype="bfloat16")
    made = with_settings(job, settings)
    assert (made.remat, made.training.grad_accum) == ("matmuls", 4)
    assert made.training.optimizer.first_moment_dtype == "bfloat16"
    assert dataclasses.replace(made, remat=job.remat, training=job.training) == job
    assert flags_of(job, settings) == (
        "--training.grad-accum 4 --training.optimizer.first-moment-dtype bfloat16 --remat matmuls"
    )


def test_towers_keep_their_microbatches_and_experts_get_their_axis():
    towers, decoder = recipes.load("two_tower_tiny"), recipes.load(TINY)
    assert space_of(towers).num_microbatches == towers.training.grad_accum
    assert len(space_of(towers).remats) == 1
    assert "expert" not in space_of(decoder).axes
    experts = ExpertsConfig(num_experts=4, num_experts_per_token=2, capacity_factor=2.0, group_size=32)
    mixture = dataclasses.replace(decoder, transformer=dataclasses.replace(decoder.transformer, experts=experts))
    assert "expert" in space_of(mixture).axes
