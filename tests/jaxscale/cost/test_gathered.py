"""Weights gathered once per step, counted: moved once, as narrow as they are read, and held meanwhile."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxscale.cost.changes import propose_changes
from jaxscale.cost.chips import Topology
from jaxscale.cost.estimate import estimate_step, trace_programs
from jaxscale.sharding.specs import num_parts
from tests.jaxscale.cost import steps

LOSS = functools.partial(steps.loss, remat=False)
TOPOLOGY = Topology.parse("h100:8")


@functools.cache
def estimate(mesh="fsdp=8", *, once, num_microbatches=2):
    programs = trace_programs(LOSS, steps.params(), steps.batch(), num_microbatches=num_microbatches, gather_once=once)
    return estimate_step(programs, steps.plan(mesh), TOPOLOGY)


def stored_in_parts(mesh):
    """The parameters over `fsdp`: what one device computes with of each."""
    plan = steps.plan(mesh)
    for leaf in plan.leaves:
        over = [axis for axes in leaf.spec for axis in axes]
        if leaf.role == "parameter" and "fsdp" in over:
            yield leaf, leaf.bytes_per_device * num_parts(plan.mesh, ["fsdp"])


@pytest.mark.parametrize(("mesh", "ways"), [("fsdp=8", 8), ("fsdp=4,tensor=2", 4)])
def test_each_weight_is_gathered_once_and_its_copy_is_held(mesh, ways):
    once, each = (estimate(mesh, once=choice) for choice in (True, False))
    # The decoder computes in float32.
    copies = sum(num_bytes for _, num_bytes in stored_in_parts(mesh))
    assert copies > 0
    assert (once.gathered_bytes, each.gathered_bytes) == (copies, 0)
    assert once.traffic.bytes_moved(kind="all_gather", axes=("fsdp",)) == pytest.approx(copies * (ways - 1) / ways)
    assert each.traffic.bytes_moved(kind="all_gather", axes=("fsdp",)) > 3 * copies * (ways - 1) / ways
    for kind in ("reduce_scatter", "all_reduce"):
        assert once.traffic.bytes_moved(kind=kind) == each.traffic.bytes_moved(kind=kind)
    named = {tensor.name: tensor.num_bytes for tensor in once.memory.tensors if tensor.name.startswith("gathered: ")}
    # The report has the largest tensors only.
    assert named
    assert named.items() <= {f"gathered: {leaf.path}": size for leaf, size in stored_in_parts(mesh)}.items()
    # What each microbatch would hold of them is not counted beside the copies.
    assert each.memory.peak < once.memory.peak <= each.memory.peak + copies
    assert once.hardware == each.hardware


def test_a_copy_is_as_narrow_as_it_is_read():
    def loss(params, batch):
        return LOSS(jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(w.dtype), params), batch)

    programs = trace_programs(loss, steps.params(), steps.batch(), num_microbatches=2, gather_once=True)
    made = estimate_step(programs, steps.plan("fsdp=8"), TOPOLOGY)
    assert made.gathered_bytes == estimate(once=True).gathered_bytes // 2


def test_one_microbatch_shares_nothing():
    once, each = (estimate(once=choice, num_microbatches=1) for choice in (True, False))
    assert once == each


def test_where_it_does_not_fit_gathering_again_is_proposed():
    made = estimate(once=True)
    found = propose_changes(
        LOSS, steps.params(), steps.batch(), steps.OPTIMIZER, steps.plan("fsdp=8"), made, gather_once=True
    )
    (again,) = [change for change in found if change.what == "weights gathered in every microbatch"]
    assert again.peak_bytes == estimate(once=False).memory.peak
