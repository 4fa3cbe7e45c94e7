"""Llama 2 7B on 256 v5e chips: none of eight plans that an expert would pick beats the one that `tune` finds."""

import importlib.util

import pytest

from benchmarks.expert_plans import EXPERT_PLANS, RECIPE, TOPOLOGY
from jaxscale import typed_json
from jaxscale.cost.chips import Topology
from jaxscale.cost.tune import Tuner
from jaxscale.cost.tune_candidates import step_time
from launch import recipes
from launch.compile_recipe import CompileRequest, compile_recipe
from launch.plan_report import PlanReport
from launch.tuned_job import space_of, with_settings

WHERE = Topology.parse(TOPOLOGY)


@pytest.fixture(scope="module")
def job():
    return recipes.load(RECIPE)


@pytest.fixture(scope="module")
def tuner(job):
    return Tuner(lambda settings: with_settings(job, settings).planned_step(), space_of(job))


@pytest.fixture(scope="module")
def best(tuner):
    return tuner.search(WHERE).best


def step_time_compiled(job, tuner, mesh, settings):
    """The plan's step time by the compiler's bytes in seconds, None where the compiler says that it does not fit."""
    request = CompileRequest(
        recipe=RECIPE,
        job=typed_json.encode(with_settings(job, settings)),
        topology=TOPOLOGY,
        num_slices=1,
        mesh=str(mesh),
        machine_code=False,
    )
    report = PlanReport(estimate=tuner.estimate(mesh, settings, WHERE), compiled=compile_recipe(request), changes=())
    return step_time(report.compiled_bound) if report.fits else None


def test_there_are_eight_different_plans():
    assert len({(str(mesh), settings) for mesh, settings in EXPERT_PLANS}) == 8
    assert all(mesh.num_devices == WHERE.num_devices for mesh, _ in EXPERT_PLANS)


@pytest.mark.slow
def test_no_expert_beats_the_best_as_predicted(tuner, best):
    fitting = [e for e in (tuner.estimate(*plan, WHERE) for plan in EXPERT_PLANS) if e.fits()]
    assert len(fitting) >= 5, "plans that do not fit compare nothing"
    assert best.step_s <= min(step_time(estimate.bound) for estimate in fitting)


@pytest.mark.slow
@pytest.mark.aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_no_expert_beats_the_best_as_compiled(job, tuner, best):
    best_s = step_time_compiled(job, tuner, best.mesh, best.settings)
    assert best_s is not None
    experts = [step_time_compiled(job, tuner, mesh, settings) for mesh, settings in EXPERT_PLANS]
    fitting = [expert_s for expert_s in experts if expert_s is not None]
    assert len(fitting) >= 5, "plans that do not fit compare nothing"
    assert best_s <= min(fitting)
