"""Nothing silent: every failure is refused by every verb with its words and exit code 2, before anything compiles."""

from pathlib import Path

import pytest

from jaxscale.observe.compiles import CompileCounter
from launch import cli
from launch.verbs import plan

RECIPES = Path(__file__).parent / "refused_recipes.py"

# The recipe, the mesh, and what the message must say: the leaf or the line, the bytes, the reason, the legal sizes.
REFUSALS = {
    "copied leaf": (
        "large_leaf",
        "fsdp=8",
        (
            "up (2049, 4099): 33595404 bytes would be copied over fsdp, above replicated_leaf_bytes=16777216",
            "dim 0 (2049) over fsdp=8: 2049 does not divide by 8",
            "Legal sizes: dim 0 (2049): 1, 3, 683; dim 1 (4099): 1",
        ),
    ),
    "axis without a rule": ("suits", "stage=8", ("nothing is split over stage=8", "use stage=1")),
    "axis that nothing divides": (
        "odd_width",
        "tensor=8",
        ("nothing is split over tensor=8", "255 pieces can't be shared by 8", "1, 3, 5, 15, 17, 51, 85, 255"),
    ),
    "axis of a kind that is not there": (
        "suits",
        "sequence=8",
        ("nothing is split over sequence=8: no dim is of the kind that sequence splits; use sequence=1",),
    ),
    "examples": ("twelve_examples", "data=8", ("12", "must be divisible by data=8; use 8 or 16")),
    "constant": (
        "large_constant",
        "data=8",
        (
            "a closed-over constant float32 (1024, 1024), read at refused_recipes.py:",
            "4194304 bytes would be copied to every device, above constant_bytes=1048576",
            "pass it as a parameter or in the batch",
        ),
    ),
    "constraint that would be a copy": (
        "fifteen_rows_constrained",
        "data=8",
        (
            "a with_sharding_constraint at refused_recipes.py:",
            "dim 0 of (15, 64) is 15, which does not divide by data=8",
            "jax would copy the whole value, 3840 bytes",
            "sizes that divide it: 1, 3, 5, 15",
        ),
    ),
    "work done more than once": (
        "three_heads",
        "tensor=8",
        (
            "times what is to be computed, above max_flops_ratio=1.05",
            "a matmul (16, 64) x (64, 96) at refused_recipes.py:",
            "is computed 8 times",
        ),
    ),
    "no program": ("no_program", "data=8", ("can't be traced (refused_recipes.py:", "contracting dimensions")),
    "no such axis": ("suits", "fdsp=8", ("unknown axis 'fdsp'; did you mean 'fsdp'?",)),
    "axis named twice": ("suits", "data=2,data=4", ("data is named twice",)),
}
VERBS = {
    "explain": ["--mesh", "{mesh}"],
    "plan": ["--topology", "cpu:8", "--mesh", "{mesh}"],
    "train": ["--mesh", "{mesh}", "--out", "{out}", "--operation.compile-cache", "off"],
}


@pytest.fixture
def nothing_compiles(monkeypatch):
    def compile_recipe(request):
        raise AssertionError(f"{request.recipe} must not be compiled")

    monkeypatch.setattr(plan, "compile_recipe", compile_recipe)
    with CompileCounter() as counter:
        yield
    assert counter.names == ()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("failure", REFUSALS)
def test_every_failure_is_refused_by_every_verb(nothing_compiles, failure, verb, tmp_path, capsys):
    recipe, mesh, parts = REFUSALS[failure]
    flags = [word.format(mesh=mesh, out=tmp_path / "run") for word in VERBS[verb]]
    assert cli.main([verb, f"{RECIPES}:{recipe}", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [part for part in parts if part not in captured.err] == []
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run" / "job.json").exists()


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "tensor=8", "data=2,fsdp=2,tensor=2"])
def test_what_suits_is_not_refused(mesh, capsys):
    assert cli.main(["explain", f"{RECIPES}:suits", "--mesh", mesh]) == 0
    assert capsys.readouterr().err == ""
