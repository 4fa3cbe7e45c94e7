"""Whole runs of a fused projection: what is stored in another order on each mesh is the same wherever it is read."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.observe.metrics import read_metrics
from jaxscale.store.checkpoints import Checkpoints
from jaxscale.train.loop import train
from jaxscale.train.signals import StopSignals
from tests.jaxscale.train import fused, runs

MESH, NUM_STEPS = "data=2,tensor=2@0-3", 3


def go(out, mesh, num_steps=NUM_STEPS, **changes):
    """The objective that was trained, with what it was given to look at, and the result."""
    identity = fused.training(num_steps)
    objective = fused.FusedObjective(identity={"training": typed_json.encode(identity)}, **changes)
    with StopSignals(patience_s=600) as stop:
        return objective, train(objective, identity, fused.operation(mesh), out, stop=stop)


def losses(out):
    return [row["loss"] for row in read_metrics(out) if "loss" in row]


def close(got, expected):
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(mine - theirs) <= 1e-5 * np.linalg.norm(theirs)


def equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """On one device, where nothing is stored in another order."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, *go(out, "data=1@0")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    out = tmp_path_factory.mktemp("split") / "run"
    return out, *go(out, MESH)


def test_kernel_bias_and_moments_are_stored_with_their_parts_dealt_out():
    placement = runs.placed(fused.FusedObjective(identity={}), fused.training(1), "data=2,tensor=2")
    layouts = placement.layouts.values()
    # Of the parameter and of two moments each.
    assert sorted((layout.logical_shape, layout.num_shards) for layout in layouts) == [
        *[((2, 64, 192), 2)] * 3,
        *[((2, 192), 2)] * 3,
    ]


@pytest.mark.slow
def test_training_on_stored_layouts_is_that_of_one_device(alone, split):
    (out, objective, _), (split_out, split_objective, _) = alone, split
    np.testing.assert_allclose(losses(split_out), losses(out), rtol=1e-5)
    assert len(set(losses(out))) == NUM_STEPS
    assert len(split_objective.evaluated) == NUM_STEPS + 1
    close(split_objective.evaluated, objective.evaluated)


@pytest.mark.slow
def test_what_is_exported_is_what_was_evaluated_best(split):
    out, objective, result = split
    assert result.best.step == 0
    with Checkpoints(out / "checkpoints") as checkpoints:
        best = checkpoints.restore(0, {"params": objective.evaluated[0]})[0]["params"]
    equal((objective.exported[0], best), (objective.evaluated[0],) * 2)


@pytest.mark.slow
def test_checkpoints_are_in_the_logical_order(alone, split):
    (out, *_), (split_out, *_) = alone, split
    states = [Checkpoints(folder / "checkpoints").restore(NUM_STEPS, None)[0] for folder in (split_out, out)]
    close(*states)


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_the_unbroken_one(split, tmp_path):
    _, objective, result = split
    go(tmp_path / "run", MESH, num_steps=1)
    again, resumed = go(tmp_path / "run", MESH)
    assert resumed.state_hash == result.state_hash
    equal(again.evaluated, objective.evaluated[1 + 1 :])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=1@0", "fsdp=2,tensor=4"])
def test_another_mesh_goes_on_from_it_with_layouts_of_its_own(alone, split, tmp_path, mesh):
    (_, objective, _) = alone
    go(tmp_path / "run", MESH, num_steps=2)
    moved, _ = go(tmp_path / "run", mesh)
    close(moved.evaluated, objective.evaluated[-1:])


@pytest.mark.slow
def test_given_parameters_are_stored_too(split, tmp_path):
    given = split[1].evaluated[-1]
    objective, _ = go(tmp_path / "run", MESH, num_steps=1, starting_params=given)
    equal(objective.evaluated[0], given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uneven(fused.FusedObjective):
    """Its batches have other leaves in one bucket than in the other."""

    def batch_shapes(self):
        shapes = super().batch_shapes()
        return [shapes[0], {"y": shapes[1]["x"]}]


def test_batches_of_different_leaves_are_refused():
    with pytest.raises(UsageError, match=r"batches have the leaves \['y'\] and \['x'\]"):
        runs.placed(Uneven(identity={}), fused.training(1), "data=2")
