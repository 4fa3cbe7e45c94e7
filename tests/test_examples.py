"""Every example learns, is as short as it says, and learns the same on a mesh; and what a task is refused for."""

import importlib
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.texts import adam
from jaxscale.errors import UsageError
from jaxscale.observe.metrics import read_metrics
from jaxscale.train.fit import fit
from jaxscale.train.job import Operation
from jaxscale.train.task import Task

FOLDER = Path(__file__).resolve().parents[1] / "examples"
# By name: steps, and by how much the loss falls, from the first rows to the last.
EXAMPLES = {
    "language_modelling": (60, 0.8),
    "masked_language_modelling": (60, 0.9),
    "sequence_to_sequence": (60, 0.5),
    "classification": (60, 0.95),
    "meta_learning": (200, 0.9),
}


def losses(out):
    return [row["loss"] for row in read_metrics(out) if "loss" in row]


def run(name, out, num_steps, mesh=""):
    return importlib.import_module(f"examples.{name}").main(out=out, num_steps=num_steps, mesh=mesh)


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.py"))])
def test_they_are_short(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_learn(name, tmp_path):
    num_steps, share = EXAMPLES[name]
    fitted = run(name, tmp_path / "run", num_steps, "data=1@0")
    assert fitted.result.step == num_steps
    made = losses(tmp_path / "run")
    assert np.mean(made[-2:]) < share * made[0]


def test_a_policy_finds_the_door(tmp_path):
    fitted = run("policy_gradient", tmp_path / "run", 150, "data=1@0")
    rewards = [row["reward"] for row in read_metrics(tmp_path / "run") if "reward" in row]
    assert np.mean(rewards[-3:]) > 0.9 > 0.75 > rewards[0]
    assert fitted.predict([(2, 7), (7, 2), (0, 8)]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("language_modelling", "fsdp=4,tensor=2"),
        ("sequence_to_sequence", "data=2,fsdp=4"),
        ("classification", "data=8"),
        ("meta_learning", "data=8"),
        ("policy_gradient", "data=8"),
    ],
)
def test_they_learn_the_same_on_a_mesh(name, mesh, tmp_path):
    run(name, tmp_path / "one", 10, "data=1@0")
    run(name, tmp_path / "mesh", 10, mesh)
    assert losses(tmp_path / "mesh") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_the_same_call_goes_on_and_one_that_is_done_only_reads(tmp_path):
    first = run("classification", tmp_path / "run", 4, "data=1@0")
    longer = run("classification", tmp_path / "run", 6, "data=1@0")
    whole = run("classification", tmp_path / "whole", 6, "data=1@0")
    assert (first.result.step, longer.result.step) == (4, 6)
    assert longer.result.state_hash == whole.result.state_hash
    again = run("classification", tmp_path / "run", 6, "data=1@0")
    assert not again.result.trained
    jax.tree.map(np.testing.assert_array_equal, again.params, longer.params)


class Line(nnx.Module):
    def __init__(self, key):
        self.slope = nnx.Param(jax.random.normal(key, ()))

    def __call__(self, x):
        return self.slope[...] * x


def line_task(**changes):
    parts = {
        "name": "line",
        "model": Line,
        "collate": lambda examples: {"x": np.array(examples, np.float32)},
        "loss": lambda model, batch, key: (jnp.square(model(batch["x"]) - 2 * batch["x"]).mean(), {}),
        "predict": lambda model, batch: {"y": model(batch["x"])},
    }
    return Task(**{**parts, **changes})


def fit_line(out, task=None, examples=(1.0, 2.0, 3.0, 4.0, 5.0), **options):
    training = adam(100, 4, 0.1)
    return fit(
        task or line_task(), examples, out=out, training=training, operation=Operation(mesh="data=1@0"), **options
    )


def test_predictions_have_a_row_for_every_example(tmp_path):
    fitted = fit_line(tmp_path / "run")
    predicted = fitted.predict([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])["y"]
    np.testing.assert_allclose(predicted, [2.0, 4.0, 6.0, 8.0, 10.0, 12.0], rtol=1e-2)
    assert float(fitted.model(jnp.float32(1.0))) == pytest.approx(2.0, rel=1e-2)


def test_another_task_or_other_examples_are_refused(tmp_path):
    fit_line(tmp_path / "run")
    with pytest.raises(UsageError, match=r'task: "line" -> "curve"'):
        fit_line(tmp_path / "run", line_task(name="curve"))
    with pytest.raises(UsageError, match="first_batch_sha256"):
        fit_line(tmp_path / "run", examples=(9.0, 2.0, 3.0, 4.0, 5.0))
    with pytest.raises(UsageError, match="settings"):
        fit_line(tmp_path / "run", line_task(settings={"points": 5}))


class Normed(nnx.Module):
    def __init__(self, key):
        self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(key))


class PartlyFrozen(nnx.Module):
    def __init__(self, key):
        self.frozen = nnx.Linear(1, 1, rngs=nnx.Rngs(key))


class LinenNormed(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        return flax.linen.BatchNorm(use_running_average=False)(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Normed}, r"the model keeps .*BatchStat.* besides nnx\.Param"),
        ({"model": PartlyFrozen}, "a part named 'frozen' at its top"),
        ({"model": Line(jax.random.key(0))}, "model: got Line, expected a Linen module, or a function"),
        ({"model": LinenNormed()}, "give `inputs`"),
        ({"model": LinenNormed(), "inputs": lambda batch: (batch["x"],)}, "keeps the collections batch_stats"),
    ],
)
def test_a_model_that_can_not_be_trained_so_is_refused(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        fit_line(tmp_path / "run", line_task(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": (1.0, 2.0)}, "global_batch_size=4 is more than the 2 examples there are"),
        ({"held_out": (1.0,)}, "held_out has 1 examples, expected none or a batch at least: global_batch_size=4"),
    ],
)
def test_too_few_examples_are_refused(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        fit_line(tmp_path / "run", **options)


def test_a_batch_whose_shape_depends_on_its_neighbours_is_refused(tmp_path):
    def ragged(examples):
        return {"x": np.zeros((len(examples), int(max(examples))), np.float32)}

    with pytest.raises(UsageError, match=r"is not among objective\.batch_shapes\(\)"):
        fit_line(tmp_path / "run", line_task(collate=ragged))
