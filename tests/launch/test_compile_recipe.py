"""A training step compiled in a process of its own, from a recipe's name to its memory and collectives."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest

from jaxscale import typed_json
from jaxscale.errors import MachineError, UsageError
from launch.compile_recipe import CompileRequest, compile_recipe
from tests.launch.planned_recipes import tiny_decoder

RECIPES = Path(__file__).parent / "planned_recipes.py"
TINY = CompileRequest(
    recipe=f"{RECIPES}:tiny_decoder", job=None, topology="cpu:8", num_slices=1, mesh="fsdp=4,tensor=2"
)


@pytest.fixture(scope="module")
def step():
    return compile_recipe(TINY).step


def test_a_tiny_decoder_on_emulated_devices(step):
    assert step.out_of_memory is None
    assert step.loops_known
    # Parameters and two moments in float32, split 8 ways but for small leaves; tokens and targets split 4 ways.
    num_params = tiny_decoder().transformer.num_params
    assert 3 * 4 * num_params / 8 < step.memory.arguments < 3 * 4 * num_params
    # The state is donated: nearly all of the output is written over it.
    assert step.memory.outputs - step.memory.aliased < 1024
    assert step.memory.peak == step.memory.arguments + (step.memory.outputs - step.memory.aliased) + (
        step.memory.temporaries
    )
    moved = {total.axes for total in step.collectives}
    assert ("fsdp",) in moved
    assert ("tensor",) in moved
    sizes = {"fsdp": 4, "tensor": 2}
    # What goes over both axes may go between some of their devices only.
    assert all(total.group_size <= math.prod(sizes[axis] for axis in total.axes) for total in step.collectives)
    assert {total.group_size for total in step.collectives if total.axes == ("tensor",)} == {2}
    assert set(step.versions) >= {"jax", "jaxlib"}
    assert step.compile_s > 0


def test_what_was_changed_in_the_job_counts(step):
    job = tiny_decoder()
    wider = dataclasses.replace(job, transformer=dataclasses.replace(job.transformer, vocab_size=1024))
    large = compile_recipe(dataclasses.replace(TINY, job=typed_json.encode(wider))).step.memory
    # 768 more rows of 64 floats, three times, split 8 ways.
    assert large.arguments - step.memory.arguments == 768 * 64 * 4 * 3 // 8


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mesh": "fsdp=4"}, UsageError, "fsdp=4 needs 4 devices, 8 are there"),
        ({"recipe": f"{RECIPES}:nothing_to_plan"}, UsageError, "a str, which has no training step to compile"),
        ({"recipe": f"{RECIPES}:bare"}, UsageError, "a BareJob without a field `training`"),
    ],
)
def test_refusals_come_back_as_what_they_are(changes, error, message):
    with pytest.raises(error, match=message):
        compile_recipe(dataclasses.replace(TINY, **changes))


def test_a_compiler_that_crashes_is_an_error_of_the_machine(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    request = dataclasses.replace(TINY, topology="cpu:eight")
    with pytest.raises(MachineError, match=r"compiling .* for cpu:eight ended with exit code"):
        compile_recipe(request)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_what_to_install():
    with pytest.raises(MachineError, match=r"pip install 'jaxscale\[tpu\]'"):
        compile_recipe(dataclasses.replace(TINY, topology="v5e:2x4"))


@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_out_of_memory_is_an_answer_with_the_largest_buffers():
    step = compile_recipe(
        dataclasses.replace(TINY, recipe=f"{RECIPES}:far_too_large", topology="v5e:2x4", mesh="data=8")
    ).step
    assert step.memory is None
    assert step.out_of_memory.needed_bytes > step.out_of_memory.available_bytes > 15 * 2**30
    sizes = [buffer.num_bytes for buffer in step.buffers]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2**30
