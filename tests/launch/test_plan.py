"""`jaxscale plan`: predicted beside compiled, GPUs by prediction alone; what does not fit ends with 7 and a table."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from jaxscale.cost.compiled import CollectiveTotal, CompiledStep, OutOfMemory
from launch import cli
from launch.compile_recipe import CompiledRecipe
from launch.verbs import plan

RECIPES = Path(__file__).parent / "planned_recipes.py"
TINY = f"{RECIPES}:tiny_decoder"
LARGE = f"{RECIPES}:far_too_large"


def table(text):
    """The rows that have a name and at least one value, by name."""
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 1}


def test_predicted_beside_compiled_on_emulated_devices(tmp_path, capsys):
    report = tmp_path / "plan.json"
    assert cli.main(["plan", TINY, "--topology", "cpu:8", "--json", str(report)]) == 0
    text = capsys.readouterr().out
    rows = table(text)
    assert "mesh fsdp=4,tensor=2 on cpu:8: 8 devices" in text
    assert "compiles, no limit is known" in text
    assert {"parameters", "optimizer", "batch", "gradients", "kept", "temporaries", "peak"} <= set(rows)
    assert len(rows["of these arguments"]) == 2
    found = json.loads(report.read_text())
    assert found["fits"] is True
    predicted, compiled = found["predicted"], found["compiled"]["step"]
    # The step's counters, and Adam's own, are all that the plan does not hold.
    held = sum(predicted["memory"][name] for name in ("parameters", "optimizer", "batch"))
    assert compiled["memory"]["arguments"] == pytest.approx(held, abs=64)
    assert compiled["loops_known"]
    kinds = {(tuple(total["axes"]), total["kind"]) for total in compiled["collectives"]}
    assert (("tensor",), "all_reduce") in kinds
    assert {axes for axes, _ in kinds} >= {("fsdp",), ("tensor",)}


def test_an_array_that_the_program_copies_whole_is_refused_with_its_line(tmp_path, capsys):
    report = tmp_path / "plan.json"
    assert cli.main(["plan", f"{RECIPES}:resharded", "--topology", "cpu:8", "--json", str(report)]) == 2
    captured = capsys.readouterr()
    assert "finds no way from one sharding to another but a copy of the whole, above 16777216 bytes" in captured.err
    named = re.compile(
        r"sharding_constraint at planned_recipes.py:\d+: f32 \(16, 524288\), 33554432 bytes, is copied whole"
    )
    assert named.search(captured.err)
    assert named.search(captured.out)
    found = json.loads(report.read_text())
    assert found["exit_code"] == 2
    assert found["compiled"]["rematerialized"][0]["num_bytes"] == 33554432


@pytest.fixture
def no_compiler(monkeypatch):
    def compile_recipe(request):
        raise AssertionError(f"{request.topology} must not be compiled for")

    monkeypatch.setattr(plan, "compile_recipe", compile_recipe)


def test_when_weights_are_gathered_is_said_and_what_copies_would_do(no_compiler, capsys):
    words = ["plan", f"{RECIPES}:small_llama", "--topology", "v5e:2x4", "--no-compile"]
    assert cli.main(words) == 0
    each = capsys.readouterr().out
    assert "4 microbatches, each of which gathers the weights stored over fsdp" in each
    assert cli.main([*words, "--operation.gather-weights", "step"]) == 0
    once = capsys.readouterr().out
    assert "4 microbatches, for which the weights stored over fsdp are gathered once: 0.033 GiB of copies" in once
    assert "--operation.gather-weights" not in once
    (before,), (after,) = table(each)["all"], table(once)["all"]
    (more,) = re.findall(
        rf"weights take (.*) GiB more and a device sends {after} instead of {before}, as predicted: "
        "--operation.gather-weights step",
        each,
    )
    peaks = [float(table(text)["peak"][0].removesuffix(" GiB")) for text in (each, once)]
    assert float(more) == pytest.approx(peaks[1] - peaks[0], abs=0.0011)


def test_gpus_are_predicted_and_it_says_so(no_compiler, tmp_path, capsys):
    report = tmp_path / "plan.json"
    assert cli.main(["plan", TINY, "--topology", "h100:8", "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "not compiled: programs for GPUs can't be compiled without one" in text
    assert "predicted: fits of" in text
    assert json.loads(report.read_text())["compiled"] is None
    rows = table(text)
    assert rows["bound by"][0] in ("compute", "hbm", "ici", "dcn")
    assert float(rows["tokens/s at most"][0].replace(",", "")) > 0
    assert rows["mfu at most"][0].endswith("%")


def test_what_does_not_fit_ends_with_7_and_the_largest_tensors(no_compiler, tmp_path, capsys):
    report = tmp_path / "plan.json"
    words = ["plan", LARGE, "--topology", "v5e:2x4", "--no-compile", "--mesh", "fsdp=4,tensor=2"]
    assert cli.main([*words, "--json", str(report)]) == 7
    captured = capsys.readouterr()
    assert "does not fit on v5e:2x4 with mesh fsdp=4,tensor=2" in captured.err
    assert "largest tensors when it is fullest" in captured.out
    assert "changes that help, as predicted" in captured.out
    assert "parameters and optimizer state alone take" in captured.out
    found = json.loads(report.read_text())
    assert (found["exit_code"], found["fits"]) == (7, False)
    assert found["predicted"]["memory"]["parameters"] > 0
    assert found["changes"]


def test_what_an_unfinished_program_sends_bounds_no_time(monkeypatch, tmp_path, capsys):
    total = CollectiveTotal(
        axes=("fsdp",), kind="all_reduce", group_size=4, num_runs=1, num_bytes=2**30, bytes_moved=1.5 * 2**30
    )
    refused = OutOfMemory(needed_bytes=2**40, available_bytes=2**34, message="RESOURCE_EXHAUSTED")
    unfinished = CompiledStep(
        memory=None,
        out_of_memory=refused,
        collectives=(total,),
        loops_known=True,
        xla_flops=None,
        buffers=(),
        compile_s=1.0,
        versions={},
    )
    monkeypatch.setattr(plan, "compile_recipe", lambda request: CompiledRecipe(step=unfinished, rematerialized=()))
    report = tmp_path / "plan.json"
    assert cli.main(["plan", TINY, "--topology", "v5e:2x4", "--json", str(report)]) == 7
    text = capsys.readouterr().out
    assert "gave up before its program was done" in text
    assert "with compiled bytes" not in text
    assert json.loads(report.read_text())["compiled_bound"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "plan needs --topology"),
        ("--topology v9:2x2", "unknown chip 'v9'"),
        ("--topology v5e:4", "expected 2 sizes"),
        ("--topology v5e:2x4 --mesh fsdp=4", "fsdp=4 needs 4 devices, 8 are there"),
        ("--topology v5e:2x4 --mesh fsdp=32 --slices 4", "global_batch_size=16 must be divisible by fsdp=32; use 32"),
    ],
)
def test_what_is_refused_before_anything_compiles(no_compiler, capsys, flags, message):
    assert cli.main(["plan", TINY, *flags.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_without_a_step_is_refused(capsys):
    assert cli.main(["plan", f"{RECIPES}:nothing_to_plan", "--topology", "cpu:8"]) == 2
    assert "a str, which has no training step to plan" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_tpus_without_libtpu_say_what_to_install(capsys):
    assert cli.main(["plan", TINY, "--topology", "v5e:2x4"]) == 4
    assert "pip install 'jaxscale[tpu]'" in capsys.readouterr().err


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_a_tpu_topology(tmp_path, capsys):
    report = tmp_path / "plan.json"
    assert cli.main(["plan", TINY, "--topology", "v5e:2x4", "--json", str(report)]) == 0
    assert "compiled: fits" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["compiled"]["step"]["versions"]["libtpu"]
    assert found["compiled"]["step"]["memory"]["temporaries"] > 0
    assert found["compiled_bound"]["overlapped_s"] > 0


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_the_compiler_says_what_does_not_fit(capsys):
    assert cli.main(["plan", LARGE, "--topology", "v5e:2x4"]) == 7
    captured = capsys.readouterr()
    assert "compiled: does not fit: RESOURCE_EXHAUSTED" in captured.out
    assert "largest tensors when it is fullest" in captured.out
