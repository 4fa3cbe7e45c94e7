"""Towers with LoRA: they start as the model they start from, leave it as it is, and are exported merged."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxscale import frozen
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.config import LoRAConfig
from jaxscale.store import arrays
from jaxscale.train.loop import train
from jaxscale.train.placement import place
from retrieval.encode import encode_texts
from retrieval.towers.encoder import Encoder
from retrieval.towers.loading import load_towers
from retrieval.towers.start import Towers
from retrieval.towers.trained import whole, without_factors
from tests.retrieval.towers.small_pairs import tiny_job, write_pairs
from tests.retrieval.towers.test_loading import write_decoder, write_model

LORA = LoRAConfig(rank=2, alpha=4.0, targets=("query", "value", "mlp"))
TEXTS = ["some words", "more words to make pieces of", "pieces"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def job_from(folder, model, **changes):
    towers = {"init_from": str(model), "transformer": None, "lora": LORA} | changes.pop("towers", {})
    data = {"query_buckets": (8,), "document_buckets": (10,)}
    return tiny_job(folder, towers=towers, data=data, **changes)


def vectors(encoder):
    return encode_texts(encoder, TEXTS, make_mesh(MeshSpec(), jax.devices()[:1])).vectors


@pytest.mark.slow
def test_a_run_trains_the_factors_and_exports_them_merged(folder, tmp_path):
    model = write_decoder(tmp_path / "model")
    job = job_from(
        folder,
        model,
        towers={"pooling": "last", "append_end": True, "projection_dim": 4},
        training={"num_steps": 4},
        operation={"mesh": "fsdp=2@0-1", "eval_every_steps": 4, "best_metric": ""},
    )
    objective = job.objective()
    started = objective.starting_params
    base = load_towers(model).document.params["transformer"]
    jax.tree.map(np.testing.assert_array_equal, started["frozen"]["towers"]["shared"]["transformer"], base)
    exported = {}

    class Watched(type(objective)):
        def export(self, params, path):
            exported.update(params)
            super().export(params, path)

    watched = Watched(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)})
    train(watched, job.training, job.operation, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, exported["frozen"], started["frozen"])
    moved = arrays.named_leaves(frozen.trained(exported))
    assert all(
        not np.array_equal(moved[name], leaf) for name, leaf in arrays.named_leaves(frozen.trained(started)).items()
    )
    assert {name.rpartition("/")[2] for name in moved} == {"lora_a", "lora_b", "kernel"}

    retriever = load_towers(tmp_path / "run")
    assert retriever.document.config.transformer == load_towers(model).document.config.transformer
    unmerged = Encoder(
        config=objective.towers.document,
        params=whole(exported)["towers"]["shared"],
        tokenizer=retriever.document.tokenizer,
    )
    np.testing.assert_allclose(vectors(retriever.document), vectors(unmerged), atol=1e-5)
    untrained = dataclasses.replace(unmerged, params=whole(started)["towers"]["shared"])
    assert np.abs(vectors(untrained) - vectors(unmerged)).max() > 1e-3


def test_at_first_the_towers_are_those_of_the_model(folder, tmp_path):
    objective = job_from(folder, write_model(tmp_path / "model")).objective()
    plain = job_from(folder, tmp_path / "model", towers={"lora": None}).objective()
    tree = whole(objective.starting_params)["towers"]["shared"]
    config, merged = without_factors(objective.towers.document, tree)
    assert config == plain.towers.document
    jax.tree.map(np.testing.assert_array_equal, merged, plain.starting_params["towers"]["shared"])


def test_the_optimizer_keeps_two_moments_of_the_factors_alone(folder, tmp_path):
    job = job_from(folder, write_model(tmp_path / "model"))
    plan = place(job.objective(), job.training, make_mesh(MeshSpec(), jax.devices()[:1])).plan
    state = sum(leaf.bytes_per_device for leaf in plan.leaves if leaf.role == "optimizer")
    num_layers, d_model, d_ff = 1, 8, 16
    of_one = LORA.rank * (2 * (d_model + d_model) + 2 * (d_model + d_ff))
    num_counters = 2
    assert state == 4 * (2 * num_layers * of_one + num_counters)
    # Where training has its arrays, a plan without data has them.
    assert job.planned_step().params == jax.eval_shape(job.objective().init_params, jax.random.key(0))


def test_one_of_two_towers_has_factors_and_the_other_is_trained_whole(folder, tmp_path):
    model = write_model(tmp_path / "model")
    objective = job_from(folder, model, towers={"shared": False, "lora_on": "document"}).objective()
    assert list(objective.starting_params["frozen"]["towers"]) == ["document"]
    assert objective.towers.query.transformer.lora is None
    assert "embeddings" in objective.starting_params["towers"]["query"]["transformer"]
    assert "embeddings" not in objective.starting_params["towers"]["document"]["transformer"]
    assert jax.tree.map(np.shape, objective.starting_params) == jax.tree.map(
        np.shape, jax.eval_shape(objective.init_params, jax.random.key(0))
    )


def test_what_makes_no_sense_is_refused(folder):
    with pytest.raises(UsageError, match=r"towers\.lora_on='query' needs towers\.lora, and weights for each side"):
        Towers(lora=LORA, lora_on="query")
    with pytest.raises(UsageError, match=r"towers\.lora leaves the weights started from as they are, but .* not given"):
        tiny_job(folder, towers={"lora": LORA}).check(MeshSpec(data=1))
