"""A whole training run of two towers: the loss falls, the dev metric rises, the export is what was trained."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs.two_tower import two_tower_decoder_tiny
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.plan import batch_sharded, replicated
from jaxscale.train.loop import train
from retrieval.towers.loading import load_towers
from tests.configs.on_meshes import everything_in, far_leaves
from tests.jaxscale.train import runs
from tests.retrieval.towers.small_pairs import random_params, tiny_job, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_exports_what_it_learned(folder, tmp_path):
    job = tiny_job(
        folder,
        training={"num_steps": 40},
        operation={"mesh": "data=2,fsdp=2,tensor=2", "eval_every_steps": 20, "checkpoint_every_steps": 20},
        contrastive={"learn_temperature": True, "symmetric": True},
    )
    objective = job.objective()
    result = train(objective, job.training, job.operation, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    temperatures = [row["temperature"] for row in rows if "temperature" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    measured = {row["step"]: row["dev/sample_nDCG@10"] for row in rows if "dev/sample_nDCG@10" in row}
    assert losses[-1] < 0.5 * losses[0]
    assert set(measured) == {0, 20, 40}
    assert measured[40] > measured[0] + 0.05
    assert result.best.value == max(measured.values())
    assert abs(temperatures[-1] - job.contrastive.temperature) > 1e-3

    towers = load_towers(tmp_path / "run")
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    shared = jax.device_put(towers.document.params, replicated(mesh))
    exported = objective.evaluate({"towers": {"shared": shared}}, mesh)
    assert exported["sample_nDCG@10"] == pytest.approx(result.best.value, abs=0.01)
    assert towers.document.tokenizer.fingerprint == objective.tokenizer.fingerprint
    towers.contract.require_speaks(towers.identity("query"))


def test_the_objectives_gradient_on_a_mesh_equals_that_on_one_device(folder):
    """Whole towers, learned temperature and hard masks: the loss's own test has linear towers."""
    job = tiny_job(folder, contrastive={"learn_temperature": True, "symmetric": True}, training={"num_steps": 1})
    objective = job.objective()
    params, batch = random_params(objective.init_params), objective.batch(0)
    params = jax.tree.map(np.float64, {**params, "log_temperature": 0.0})
    computation = dataclasses.replace(objective.computation, compute_dtype="float64")

    def gradient(mesh_text):
        spec = MeshSpec.parse(mesh_text)
        mesh = make_mesh(spec, jax.devices()[: spec.num_devices])
        step = jax.jit(jax.value_and_grad(lambda p, b: computation.loss(p, b, jax.random.key(0))[0]))
        return jax.device_get(
            step(jax.device_put(params, replicated(mesh)), jax.device_put(batch, batch_sharded(mesh)))
        )

    # In float32 the gradients of the temperature and of keys' biases are small differences of large sums.
    with everything_in("float64"):
        alone, spread = gradient("data=1"), gradient("data=2,fsdp=2,tensor=2")
    assert spread[0] == pytest.approx(float(alone[0]), rel=1e-10)
    assert far_leaves(spread[1], alone[1], tolerance=1e-10) == {}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"negatives": "ring", "cache_chunks": 4, "matryoshka_dims": (8, 32)}])
def test_losses_with_pinned_activations_are_those_of_one_device(folder, more):
    training = {"num_steps": 3, "compute_dtype": "float32"}
    contrastive = {"learn_temperature": True, "symmetric": True, **more}
    job = tiny_job(folder, contrastive=contrastive, training=training)
    objective = job.objective()
    mesh = "data=2,fsdp=2,tensor=2"
    assert runs.placed(objective, job.training, mesh).plan.activations
    alone, spread = (runs.losses(objective, job.training, text, 3) for text in ("data=1", mesh))
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


@pytest.mark.slow
def test_decoder_towers_learn_too(folder, tmp_path):
    decoder = two_tower_decoder_tiny().towers
    job = tiny_job(folder, towers=vars(decoder), training={"num_steps": 40})
    result = train(job.objective(), job.training, job.operation, tmp_path / "run")
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    towers = load_towers(tmp_path / "run")
    assert towers.query.config.transformer.headless
    assert result.best.value > 0.1


def test_prefixes_and_separate_towers_reach_the_vectors(folder):
    objective = tiny_job(folder, towers={"shared": False, "query_prefix": "nanana "}).objective()
    params, batch = random_params(objective.init_params), objective.batch(0)
    first = objective.tokenizer.encode_batch(["nanana"], 16).ids[0][:-1]
    assert (batch["query_tokens"][:, : len(first)] == first).all()
    assert objective.towers.document.prefix == ""
    loss = jax.jit(lambda p: objective.loss(p, batch, jax.random.key(0))[0])
    swapped = {"towers": {"query": params["towers"]["document"], "document": params["towers"]["query"]}}
    assert abs(loss(params) - loss(swapped)) > 1e-3
