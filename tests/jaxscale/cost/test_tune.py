"""The search beside brute force: the same best, and for every mesh and remat the best there is."""

import collections
import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxscale.cost.chips import CHIPS, Topology
from jaxscale.cost.estimate import estimate_step, trace_programs
from jaxscale.cost.programs import microbatch_of
from jaxscale.cost.roofline import StepBound
from jaxscale.cost.tune import Tuner
from jaxscale.cost.tune_candidates import Settings, Space, step_time
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive

LAYERS, WIDTH, HIDDEN, EXAMPLES, LENGTH = 4, 1024, 4096, 8, 512
REMATS, DTYPES = ("full", "none"), ("float32", "bfloat16")
AXES = ("data", "fsdp", "tensor")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class PlainStep:
    loss: object
    params: object
    batch: object
    optimizer: optax.GradientTransformation
    num_tokens: int = EXAMPLES * LENGTH


def step_of(settings):
    """A residual MLP, written on plain arrays."""

    def layer(x, weights):
        up, down = weights
        return x + jnp.tanh(x @ up) @ down, None

    def loss(params, batch):
        body = jax.checkpoint(layer) if settings.remat == "full" else layer
        x, _ = jax.lax.scan(body, batch["x"], (params["up"], params["down"]))
        return jnp.mean(jnp.square(x))

    shapes = {"up": (LAYERS, WIDTH, HIDDEN), "down": (LAYERS, HIDDEN, WIDTH)}
    return PlainStep(
        loss=loss,
        params={name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()},
        batch={"x": jax.ShapeDtypeStruct((EXAMPLES, LENGTH, WIDTH), jnp.float32)},
        optimizer=optax.adamw(1e-3, mu_dtype=settings.optimizer_dtype),
    )


def topology(limit_bytes):
    chip = dataclasses.replace(CHIPS["v5e"], memory_limit_bytes=limit_bytes)
    return Topology(chip=chip, shape=(2, 2))


def count(mesh, settings, where):
    """One step counted without anything of the search; None where the mesh does not suit it."""
    step = step_of(settings)
    try:
        part = microbatch_of(step.batch, settings.num_microbatches)
        plan = derive(step.loss, step.params, part, mesh, optimizer=step.optimizer)
        programs = trace_programs(step.loss, step.params, step.batch, num_microbatches=settings.num_microbatches)
    except UsageError:
        return None
    return estimate_step(programs, plan, where)


@functools.cache
def all_steps():
    """Every step of every mesh of four devices, by mesh, remat, precision and microbatches."""
    sizes = [size for size in itertools.product((1, 2, 4), repeat=3) if math.prod(size) == 4]
    found = {}
    for size, remat, dtype, number in itertools.product(sizes, REMATS, DTYPES, (1, 2, 4, 8)):
        mesh = MeshSpec(**dict(zip(AXES, size, strict=True)))
        settings = Settings(remat=remat, num_microbatches=number, optimizer_dtype=dtype)
        estimate = count(mesh, settings, topology(2**40))
        if estimate is not None:
            found[str(mesh), remat, dtype, number] = estimate
    return found


def by_brute_force(limit):
    """The shortest time of what fits, by mesh, remat and precision."""
    best = collections.defaultdict(lambda: float("inf"))
    for (*key, _), estimate in all_steps().items():
        if estimate.memory.peak <= limit:
            best[tuple(key)] = min(best[tuple(key)], step_time(estimate.bound))
    return best


def search(where, **space):
    return Tuner(step_of, Space(**{"axes": AXES, "remats": REMATS, "optimizer_dtypes": DTYPES, **space})).search(where)


@pytest.mark.parametrize("limit", [195 * MIB, 240 * MIB, 330 * MIB, 2**40])
def test_the_search_finds_what_brute_force_finds(limit):
    expected, found = by_brute_force(limit), search(topology(limit))
    assert expected, "the limit leaves nothing to compare"
    pairs = {(mesh, remat) for mesh, remat, _ in expected}
    assert {(str(c.mesh), c.settings.remat) for c in found.ranking} == pairs
    for candidate in found.ranking:
        mesh, remat, dtype = str(candidate.mesh), candidate.settings.remat, candidate.settings.optimizer_dtype
        assert candidate.step_s == pytest.approx(expected[mesh, remat, dtype], rel=1e-12)
        assert candidate.peak_bytes <= limit
        # Less precise only where that is worth a hundredth of the time.
        precise, rounded = (expected[mesh, remat, name] for name in DTYPES)
        assert dtype == ("bfloat16" if rounded < 0.99 * precise else "float32")
    assert found.best.step_s <= 1.01 * min(expected.values())
    assert [c.step_s for c in found.ranking] == sorted(c.step_s for c in found.ranking)


def test_every_pair_of_mesh_and_remat_is_a_candidate_or_refused():
    for limit in (100 * MIB, 195 * MIB, 2**40):
        found = search(topology(limit))
        assert len(found.ranking) + sum(r.count for r in found.refusals) == 6 * len(REMATS)
        assert (found.closest is None) == bool(found.ranking)


def test_where_nothing_fits_the_closest_is_told():
    found = search(topology(100 * MIB))
    assert found.ranking == ()
    assert found.best is None
    assert [r.why for r in found.refusals] == ["does not fit with any number of microbatches"]
    assert found.closest.peak_bytes == min(estimate.memory.peak for estimate in all_steps().values())


def test_fewer_examples_than_devices_are_said_and_positions_are_the_last_resort():
    found = search(topology(2**40), num_microbatches=8)
    assert {r.why for r in found.refusals} == {"the batch does not divide"}
    assert {str(c.mesh) for c in found.ranking} == {"tensor=4"}
    assert {c.settings.num_microbatches for c in found.ranking} == {8}
    # Eight microbatches of one example leave no other way to use four devices.
    split = search(topology(2**40), axes=("data", "sequence"), num_microbatches=8)
    assert {str(c.mesh) for c in split.ranking} == {"sequence=4"}
    assert all(c.mesh.sequence == 1 for c in search(topology(2**40), axes=("data", "sequence")).ranking)


def test_a_chip_without_figures_is_ranked_by_flops_and_bytes_and_needs_no_microbatches():
    found = search(Topology.parse("cpu:4"))
    assert [c.rank[:2] for c in found.ranking] == sorted((c.flops, c.bytes_sent) for c in found.ranking)
    assert {c.settings.num_microbatches for c in found.ranking} == {1}
    assert found.best.settings == Settings(remat="none", num_microbatches=1, optimizer_dtype="float32")


def test_the_next_smaller_has_more_microbatches_until_there_are_no_more():
    where = topology(2**40)
    tuner = Tuner(step_of, Space(axes=AXES, remats=REMATS, optimizer_dtypes=DTYPES))
    candidate = next(c for c in tuner.search(where).ranking if str(c.mesh) == "fsdp=4")
    numbers = []
    while candidate is not None:
        numbers.append(candidate.settings.num_microbatches)
        candidate = tuner.next_smaller(candidate, where)
    assert numbers == [1, 2]


def test_the_smallest_slice_is_the_first_that_fits():
    chip = dataclasses.replace(CHIPS["v5e"], memory_limit_bytes=220 * MIB)
    tuner = Tuner(step_of, Space(axes=AXES, remats=REMATS, optimizer_dtypes=DTYPES))
    sizes = ((1, 1), (2, 2), (2, 4), (4, 4))
    fitting = [size for size in sizes if tuner.search(Topology(chip=chip, shape=size)).ranking]
    assert fitting[0] == (2, 2)
    assert tuner.smallest(Topology(chip=chip, shape=(4, 8))).topology.shape == (2, 2)
    assert tuner.smallest(Topology(chip=chip, shape=(2, 2))) is None


def test_step_time_is_between_its_two_bounds():
    bound = StepBound(
        compute_s=2.0, hbm_s=1.0, ici_s=1.0, dcn_s=0.0, overlapped_s=2.0, serial_s=3.0, bound_by="compute",
        pipeline_bubble=0.0,
    )  # fmt: skip
    assert step_time(bound) == 2.5
    assert step_time(dataclasses.replace(bound, serial_s=None)) is None
