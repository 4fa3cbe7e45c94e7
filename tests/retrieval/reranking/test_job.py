"""The job of a re-ranker: checked before anything is read, planned without data, named by hashes and no paths."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.train.planned_step import derive_step
from retrieval.reranking.cross_encoder import CrossEncoder
from retrieval.reranking.folder import save_reranker
from retrieval.reranking.job import RerankerJob
from retrieval.reranking.start import planned_reranker, start_reranker
from retrieval.towers.loading import load_towers
from tests.retrieval.reranking.small_groups import tiny_reranker_job
from tests.retrieval.towers.small_pairs import random_params, write_pairs
from tests.retrieval.towers.test_loading import write_decoder, write_model, write_retriever


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def test_json_round_trip(folder):
    job = tiny_reranker_job(folder)
    assert typed_json.decode(RerankerJob, json.loads(json.dumps(typed_json.encode(job)))) == job


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"folder": ""}}, "data.folder is not given"),
        ({"model": {"transformer": None}}, "model.init_from is not given"),
        ({"model": {"init_from": "somewhere"}}, "brings its own transformer"),
        ({"training": {"global_batch_size": 9}}, "must be divisible by data=8"),
        ({"training": {"batch_ramp": ((0, 8), (2, 16))}}, "one size"),
        ({"operation": {"best_metric": "rerank_nDCG@10"}}, "must be one of sample_nDCG@10"),
    ],
)
def test_what_does_not_fit_together_is_refused(folder, changes, said):
    with pytest.raises(UsageError, match=said):
        tiny_reranker_job(folder, **changes).check(MeshSpec(data=8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"buckets": (32, 16)}, "buckets="),
        ({"num_negatives": 0}, "num_negatives=0"),
        ({"num_dev_candidates": 1}, "num_dev_candidates=1"),
        ({"num_dev_queries": 0}, "num_dev_queries=0"),
    ],
)
def test_values_out_of_range_are_refused(folder, changes, said):
    with pytest.raises(UsageError, match=said):
        tiny_reranker_job(folder, data=changes)


def test_the_planned_step_is_that_of_the_training_and_reads_no_data(folder):
    objective, step = tiny_reranker_job(folder).objective(), tiny_reranker_job("none").planned_step()
    largest = objective.batch_shapes()[-1]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in step.batch.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in largest.items()
    }
    plan = derive_step(step, MeshSpec.parse("fsdp=4,tensor=2"))
    assert any("head" in leaf.path for leaf in plan.leaves)
    with pytest.raises(UsageError, match=r"data\.buckets ends at 128 tokens"):
        tiny_reranker_job("none", data={"buckets": (128,)}).planned_step()


def test_the_identity_holds_hashes_and_no_paths(folder):
    job = tiny_reranker_job(folder)
    text = typed_json.canonical(job.objective().identity).decode()
    assert str(folder) not in text
    others = [
        {"model": {"pooling": "mean"}},
        {"data": {"num_negatives": 2}},
        {"training": {"seed": 1}},
    ]
    texts = {typed_json.canonical(tiny_reranker_job(folder, **change).objective().identity) for change in others}
    assert len(texts | {text.encode()}) == 4
    moved = dataclasses.replace(job, operation=dataclasses.replace(job.operation, log_every_steps=1))
    assert typed_json.canonical(moved.objective().identity).decode() == text


@pytest.mark.parametrize("write", [write_model, write_retriever])
def test_a_reranker_starts_from_a_model_and_from_a_retriever(write, tmp_path):
    path = write(tmp_path / "from")
    model = tiny_reranker_job(folder).starting_from(str(path)).model
    start = start_reranker(model, 12, [], seed=3)
    expected = load_towers(path).document
    assert start.model.config.transformer == expected.config.transformer
    assert start.model.tokenizer.fingerprint == expected.tokenizer.fingerprint
    for got, leaf in zip(
        jax.tree.leaves(start.params["transformer"]), jax.tree.leaves(expected.params["transformer"]), strict=True
    ):
        np.testing.assert_array_equal(got, leaf)
    assert start.params["head"]["kernel"].shape == (8,)
    assert np.abs(start.params["head"]["kernel"]).min() > 0
    with pytest.raises(UsageError, match=r"data\.buckets ends at 13"):
        planned_reranker(model, 13)


def test_a_rerankers_head_is_kept(folder, tmp_path):
    objective = tiny_reranker_job(folder).objective()
    params = random_params(objective.init_params)
    model = CrossEncoder(config=objective.computation.config, params=params, tokenizer=objective.tokenizer)
    save_reranker(tmp_path / "reranker", model)
    again = tiny_reranker_job(folder).starting_from(str(tmp_path / "reranker")).objective()
    np.testing.assert_array_equal(again.starting_params["head"]["kernel"], params["head"]["kernel"])
    assert again.tokenizer.fingerprint == objective.tokenizer.fingerprint
    assert again.identity["model"]["init_from"] is not None


def test_a_tokenizer_that_cannot_join_texts_is_refused(folder, tmp_path):
    path = write_decoder(tmp_path / "decoder")
    job = tiny_reranker_job(folder, data={"buckets": (12,)}).starting_from(str(path))
    with pytest.raises(DataError, match="a special token between them"):
        job.objective()
