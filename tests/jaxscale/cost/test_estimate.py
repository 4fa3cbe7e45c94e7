"""The joined report: its parts agree, it survives JSON, and it says what to change where a step does not fit."""

import dataclasses
import functools

import jax
import pytest

from jaxscale.cost.changes import propose_changes, rematerialized
from jaxscale.cost.chips import CHIPS, Topology
from jaxscale.cost.communication import count_traffic
from jaxscale.cost.estimate import StepEstimate, estimate_step, trace_programs
from jaxscale.cost.flops import count_flops
from jaxscale.cost.programs import gradient_program
from jaxscale.errors import UsageError
from tests.jaxscale.cost import steps

NUM_TOKENS = steps.BATCH * steps.LENGTH
LOSS = functools.partial(steps.loss, remat=False)


@functools.cache
def programs(num_microbatches: int = 1):
    return trace_programs(LOSS, steps.params(), steps.batch(), num_microbatches=num_microbatches)


@functools.cache
def estimate(mesh: str = "fsdp=4,tensor=4", topology: str = "v5e:4x4", num_microbatches: int = 1) -> StepEstimate:
    plan = steps.plan(mesh)
    return estimate_step(programs(num_microbatches), plan, Topology.parse(topology), num_tokens=NUM_TOKENS)


def small(topology: str, limit: int) -> Topology:
    """The topology with chips of little memory."""
    made = Topology.parse(topology)
    return dataclasses.replace(made, chip=dataclasses.replace(made.chip, memory_limit_bytes=limit))


def test_the_parts_are_those_of_one_step():
    made = estimate()
    assert made.hardware.total == count_flops(steps.program(False)).total
    assert made.repeated_work == pytest.approx(1.0)
    expected = count_traffic(steps.program(False), steps.placement("fsdp=4,tensor=4", False))
    assert made.traffic.bytes_moved() == expected.bytes_moved()
    assert made.bound.compute_s == pytest.approx(made.hardware.total / 16 / 197e12)
    assert made.tokens_per_s == pytest.approx(NUM_TOKENS / made.bound.overlapped_s)
    assert made.utilization.mfu == pytest.approx(made.model.total / (made.bound.overlapped_s * 16 * 197e12))
    assert made.bound.overlapped_s <= made.bound.serial_s


def test_microbatches_are_multiplied():
    once, twice = estimate("fsdp=8", "h100:8"), estimate("fsdp=8", "h100:8", 2)
    assert twice.hardware.total == once.hardware.total
    assert twice.model == once.model
    # The weights are gathered for each.
    assert twice.traffic.bytes_moved(kind="all_gather") == 2 * once.traffic.bytes_moved(kind="all_gather")


def test_survives_json():
    made = estimate()
    assert StepEstimate.from_json(made.to_json()) == made


def test_fits_by_the_limit_of_a_chip():
    made = estimate()
    assert made.fits() is True
    assert made.fits(CHIPS["cpu"]) is None
    assert made.fits(dataclasses.replace(CHIPS["v5e"], memory_limit_bytes=made.memory.peak - 1)) is False
    assert made.fits(dataclasses.replace(CHIPS["v5e"], memory_limit_bytes=made.memory.peak)) is True


def test_a_chip_without_figures_has_no_bound_and_all_the_rest():
    made = estimate("data=8", "cpu:8")
    assert made.tokens_per_s is None
    assert made.utilization is None
    assert made.memory.peak > 0


def test_where_it_does_not_fit_three_changes_are_counted():
    peak = estimate("data=2,fsdp=2", "v5e:2x2").memory.peak
    topology = small("v5e:2x2", peak // 2)
    plan = steps.plan("data=2,fsdp=2")
    made = estimate_step(programs(), plan, topology, num_tokens=NUM_TOKENS)
    assert made.fits() is False
    changes = propose_changes(LOSS, steps.params(), steps.batch(), steps.OPTIMIZER, plan, made)
    assert len(changes) == 3
    assert all(change.saved_bytes == peak - change.peak_bytes > 0 for change in changes)
    assert all(change.fits == (change.peak_bytes <= peak // 2) for change in changes)
    # Almost all of the peak is what is kept, so computing it again saves most.
    assert changes[0].what.startswith("remat")
    assert changes[0].fits


def test_remat_of_a_whole_loss_is_the_remat_of_its_scans():
    again = rematerialized(LOSS, steps.params(), steps.batch())
    computed = count_flops(gradient_program(again, steps.params(), steps.batch())).total
    assert computed == count_flops(steps.program(True)).total
    shapes = jax.eval_shape(again, steps.params(), steps.batch())
    assert shapes.shape == ()


def test_another_computations_plan_is_refused():
    other = trace_programs(lambda p, b: (p * b).sum(), *[jax.ShapeDtypeStruct((4,), "float32")] * 2)
    with pytest.raises(UsageError, match="derive the plan from the same loss"):
        estimate_step(other, steps.plan("data=8"), Topology.parse("cpu:8"))
