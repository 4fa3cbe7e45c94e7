"""Weights gathered once for all microbatches: the gradient of gathering in each, and what is gathered, counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import decoder_config
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.collectives import collectives
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.planned_step import derive_step, slice_gradients, weights_of_step
from jaxscale.train.step import accumulated_gradient
from tests.jaxscale.train import fused, runs

GRAD_ACCUM, NUM_EXAMPLES, LENGTH = 3, 24, 8
# Its kernels are of 64 KiB and more, which are split over `fsdp`.
JOB = LanguageModelJob(
    transformer=decoder_config(
        num_layers=2, d_model=64, num_heads=4, num_kv_heads=4, d_ff=128, vocab_size=512, max_positions=LENGTH
    ),
    sequence_length=LENGTH,
    training=TrainingIdentity(
        num_steps=1,
        global_batch_size=NUM_EXAMPLES,
        grad_accum=GRAD_ACCUM,
        optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant")),
    ),
    operation=Operation(),
)
EXPERTS = dataclasses.replace(
    JOB,
    transformer=dataclasses.replace(
        JOB.transformer,
        experts=ExpertsConfig(num_experts=2, num_experts_per_token=1, capacity_factor=1.0, group_size=LENGTH),
    ),
    load_balance_loss=0.5,
)
NARROW = dataclasses.replace(JOB, training=dataclasses.replace(JOB.training, compute_dtype="bfloat16"))


def compiled_gradient(job, mesh_text, *, once: bool):
    """The gradient of (params, batch) with accumulation, compiled, and the arguments that it is called with."""
    spec = MeshSpec.parse(mesh_text)
    step, mesh = job.planned_step(), make_mesh(spec)
    plan = derive_step(step, spec)
    whole = apply_plan(plan, step.loss, mesh, step.params, step.microbatch)
    gathered = weights_of_step(step, plan, mesh) if once else None
    assert (gathered is not None) == once
    slices = slice_gradients(step, plan, mesh, gathered=gathered)
    assert (slices is not None) == (spec.slice > 1)

    def gradient(params, batch):
        return accumulated_gradient(
            lambda params, batch, key: (whole(params, batch), {}),
            GRAD_ACCUM,
            params,
            batch,
            jax.random.key(0),
            slices,
            gathered,
        )

    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(0, 512, (NUM_EXAMPLES, LENGTH), dtype=np.int32) for _ in range(2))
    params = jax.jit(job.computation.init_params)(jax.random.key(0))
    batch = {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(targets)}
    at = plan.shardings(mesh, step.params), plan.shardings(mesh, step.microbatch)
    jitted = jax.jit(gradient, in_shardings=at, out_shardings=((None, None), at[0]))
    return jitted.lower(params, batch).compile(), (params, batch)


def most_gathers(compiled, mesh_text):
    """How often a step runs the all-gather of weights over `fsdp` that it runs most often; lookups aside."""
    found = [
        c
        for c in collectives(compiled.as_text(), MeshSpec.parse(mesh_text).sizes)
        if c.kind == "all_gather" and c.axes == ("fsdp",) and c.source.startswith(("linear.py", "gathered.py"))
    ]
    assert found
    assert all(c.num_runs_known for c in found)
    return max(c.num_runs for c in found)


@pytest.mark.parametrize(
    ("job", "mesh", "tolerance"),
    [
        (JOB, "fsdp=4,tensor=2", 1e-5),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (JOB, "fsdp=8", 1e-5),
                (JOB, "data=2,fsdp=4", 1e-5),
                (JOB, "slice=2,fsdp=2,tensor=2", 1e-5),
                (EXPERTS, "fsdp=2,expert=2,tensor=2", 1e-5),
                (NARROW, "fsdp=4,tensor=2", 1e-2),
            ]
        ),
    ],
)
def test_the_gradient_is_that_of_weights_gathered_in_every_microbatch(job, mesh, tolerance):
    once, arguments = compiled_gradient(job, mesh, once=True)
    (loss, _), ours = once(*arguments)
    each, _ = compiled_gradient(job, mesh, once=False)
    (wanted, _), gradient = each(*arguments)
    np.testing.assert_allclose(loss, wanted, rtol=tolerance)
    for got, right in zip(*(jax.tree.leaves(jax.device_get(tree)) for tree in (ours, gradient)), strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=tolerance * np.linalg.norm(right))
    assert most_gathers(once, mesh) == 1
    assert most_gathers(each, mesh) >= GRAD_ACCUM
    # Slices still meet once, but for the number of tokens in each microbatch.
    found = collectives(once.as_text(), MeshSpec.parse(mesh).sizes)
    assert all(c.num_runs == 1 for c in found if "slice" in c.axes and c.num_bytes > 64)


@pytest.mark.parametrize("tied", [True, False])
def test_copies_are_as_narrow_as_they_are_read_and_looked_up_tables_stay(tied):
    transformer = dataclasses.replace(NARROW.transformer, tied_output=tied)
    step, spec = dataclasses.replace(NARROW, transformer=transformer).planned_step(), MeshSpec(fsdp=4, tensor=2)
    mesh = make_mesh(spec)
    gathered = weights_of_step(step, derive_step(step, spec), mesh)
    kernel, table = (
        {
            "dtype": at(gathered.dtypes),
            "stored": axes_of(at(gathered.stored)),
            "whole": axes_of(at(gathered.whole)),
        }
        for at in (
            lambda tree: tree["layers"]["mlp"]["up"]["kernel"],
            lambda tree: tree["embeddings"]["token"]["table"],
        )
    )
    assert kernel == {"dtype": jnp.bfloat16, "stored": {"fsdp", "tensor"}, "whole": {"tensor"}}
    # Rows are looked up in float32; the output's matmul, where it has the same table, reads it whole.
    assert table == {
        "dtype": jnp.float32,
        "stored": {"fsdp", "tensor"},
        "whole": {"tensor"} if tied else {"fsdp", "tensor"},
    }
    copies = jax.eval_shape(gathered.copies, step.params)
    assert jax.tree.map(lambda copy: copy.dtype, copies) == gathered.dtypes


def test_what_functions_on_parts_take_stays_stored():
    """They gather it themselves, so that a copy would be cut up again and gathered in every microbatch besides."""
    dropless = ExpertsConfig(num_experts=2, num_experts_per_token=1, capacity_factor=None, group_size=None)
    job = dataclasses.replace(EXPERTS, transformer=dataclasses.replace(EXPERTS.transformer, experts=dropless))
    step, spec = job.planned_step(), MeshSpec(fsdp=8)
    plan = derive_step(step, spec)
    gathered = weights_of_step(step, plan, make_mesh(spec))
    stored, whole = (
        (axes_of(tree["layers"]["mlp"]["up"]), axes_of(tree["embeddings"]["token"]["table"]))
        for tree in (gathered.stored, gathered.whole)
    )
    assert stored == ({"fsdp"}, {"fsdp"})
    assert whole == ({"fsdp"}, set())


def axes_of(sharding):
    return {axis for entry in sharding.spec for axis in (entry if isinstance(entry, tuple) else (entry,))} - {None}


def test_without_fsdp_there_is_nothing_to_gather():
    step, spec = JOB.planned_step(), MeshSpec(data=4, tensor=2)
    assert weights_of_step(step, derive_step(step, spec), make_mesh(spec)) is None


@pytest.mark.slow
def test_training_on_stored_layouts_is_the_same():
    objective = fused.FusedObjective(identity={})
    training = dataclasses.replace(fused.training(2), grad_accum=2)
    mesh = "fsdp=4,tensor=2"
    placement = runs.placed(objective, training, mesh, "step")
    assert placement.layouts
    assert placement.gathered is not None
    ours, wanted = (runs.losses(objective, training, mesh, 3, when) for when in ("step", "microbatch"))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    assert len(set(ours)) == len(ours)


def test_one_microbatch_shares_nothing():
    placement = runs.placed(fused.FusedObjective(identity={}), fused.training(2), "fsdp=4,tensor=2", "step")
    assert placement.gathered is None
