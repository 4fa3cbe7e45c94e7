"""Slices that meet once per step: the gradient of one device, and what crosses between them, counted."""

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
from jaxscale.train.planned_step import derive_step, slice_gradients
from jaxscale.train.step import accumulated_gradient

GRAD_ACCUM = 3
SPEC = MeshSpec(slice=2, fsdp=2, tensor=2)
JOB = LanguageModelJob(
    transformer=decoder_config(
        num_layers=2, d_model=16, num_heads=4, num_kv_heads=2, d_ff=32, vocab_size=1024, max_positions=8
    ),
    sequence_length=8,
    training=TrainingIdentity(
        num_steps=1,
        global_batch_size=4 * GRAD_ACCUM,
        grad_accum=GRAD_ACCUM,
        optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant")),
    ),
    operation=Operation(),
    z_loss=1e-3,
)


# Experts that drop tokens, and losses of their router that show in the gradient.
EXPERTS = dataclasses.replace(
    JOB,
    transformer=dataclasses.replace(
        JOB.transformer,
        experts=ExpertsConfig(num_experts=2, num_experts_per_token=1, capacity_factor=1.0, group_size=8),
    ),
    load_balance_loss=0.5,
    router_z_loss=0.1,
)

DROPLESS = dataclasses.replace(
    EXPERTS,
    transformer=dataclasses.replace(
        JOB.transformer,
        experts=ExpertsConfig(num_experts=4, num_experts_per_token=2, capacity_factor=None, group_size=None),
    ),
)


def case(job):
    """Parameters, and a batch whose slices have different numbers of tokens to predict, of one microbatch none."""
    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(0, 1024, (4 * GRAD_ACCUM, 8), dtype=np.int32) for _ in range(2))
    targets[rng.random(targets.shape) < 0.4] = -1
    # Microbatch 0 is the rows 0, 3, 6, 9: the last two are the second slice's.
    targets[[6, 9]] = -1
    params = jax.jit(job.computation.init_params)(jax.random.key(0))
    return params, {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(targets)}


def gradient_on_slices(job, *, apart: bool):
    """A jitted gradient of (params, batch) on the mesh of two slices."""
    step, mesh = job.planned_step(), make_mesh(SPEC)
    plan = derive_step(step, SPEC)
    whole = apply_plan(plan, step.loss, mesh, step.params, step.microbatch)
    slices = slice_gradients(step, plan, mesh)
    assert slices is not None

    def gradient(params, batch):
        return accumulated_gradient(
            lambda params, batch, key: (whole(params, batch), {}),
            GRAD_ACCUM,
            params,
            batch,
            jax.random.key(0),
            slices if apart else None,
        )

    at = plan.shardings(mesh, step.params), plan.shardings(mesh, step.microbatch)
    return jax.jit(gradient, in_shardings=at, out_shardings=((None, None), at[0]))


def crossing(compiled):
    """How often, and with how many bytes, the slices meet in a step."""
    found = [c for c in collectives(compiled.as_text(), SPEC.sizes) if "slice" in c.axes]
    assert all(c.num_runs_known for c in found)
    return sum(c.total_bytes for c in found), max(c.num_runs for c in found if c.num_bytes > 64)


@pytest.mark.slow
@pytest.mark.parametrize("job", [JOB, EXPERTS, DROPLESS], ids=["dense", "experts", "dropless"])
def test_slices_meet_once_per_step_and_make_the_gradient_of_one_device(job):
    params, batch = case(job)
    apart, together = (gradient_on_slices(job, apart=apart).lower(params, batch).compile() for apart in (True, False))
    (loss, _), ours = apart(params, batch)

    def plain(params):
        of_microbatches = [
            job.loss(params, jax.tree.map(lambda x, i=i: x[i::GRAD_ACCUM], batch), jax.random.key(0))
            for i in range(GRAD_ACCUM)
        ]
        return sum(of_microbatches) / GRAD_ACCUM

    wanted, gradient = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for got, right in zip(*(jax.tree.leaves(jax.device_get(tree)) for tree in (ours, gradient)), strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-5 * np.linalg.norm(right))
    held = derive_step(job.planned_step(), SPEC).total_bytes_per_device("parameter")
    num_bytes, num_runs = crossing(apart)
    assert num_runs == 1
    # Scalars besides: the predicted tokens of a microbatch.
    assert held <= num_bytes <= held + 64
    num_bytes, num_runs = crossing(together)
    assert num_runs >= GRAD_ACCUM
    assert num_bytes >= GRAD_ACCUM * held


def test_a_loss_that_is_no_mean_of_its_parts_is_computed_whole():
    transformer = dataclasses.replace(JOB.transformer, dropout_rate=0.1)
    step = dataclasses.replace(JOB, transformer=transformer).planned_step()
    assert step.part_weight is None
    assert slice_gradients(step, derive_step(step, SPEC), make_mesh(SPEC)) is None


def test_one_slice_has_nobody_to_meet():
    step, spec = JOB.planned_step(), MeshSpec(data=2, fsdp=2, tensor=2)
    assert step.part_weight is not None
    assert slice_gradients(step, derive_step(step, spec), make_mesh(spec)) is None
