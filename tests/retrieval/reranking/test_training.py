"""A whole training run of a re-ranker on 8 devices: it learns, and what it exports scores as it was trained to."""

import json

import numpy as np
import pytest

from jaxscale.errors import DataError, VerificationError
from jaxscale.mesh import mesh_from_text
from jaxscale.train.loop import train
from retrieval.formats.trec import write_run
from retrieval.reranking.cross_encoder import apply_cross_encoder
from retrieval.reranking.reranker import Reranker
from retrieval.reranking.runs import rerank_run
from tests.retrieval.reranking.small_groups import tiny_reranker_job
from tests.retrieval.towers.small_pairs import made_up_records, random_params, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    job = tiny_reranker_job(folder, operation={"mesh": "data=2,fsdp=2,tensor=2"}, data={"buckets": (48,)})
    return train(job.objective(), job.training, job.operation, out), out


def test_training_learns(trained):
    result, out = trained
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    measured = [row["step"] for row in rows if "dev/sample_nDCG@10" in row]
    assert losses[0] == pytest.approx(np.log(4), rel=0.1)
    assert np.mean(losses[-3:]) < losses[0] - 0.1
    assert measured == [0, 30, 60]
    assert result.step == 60


def test_a_reranker_scores_each_pair_as_it_does_alone_on_every_mesh(trained):
    _, out = trained
    docs, queries, _ = made_up_records()
    passages, query = [doc.passage for doc in docs[:20]] + ["", docs[0].passage * 20], queries[0].text
    reranker = Reranker.load(out)
    scores = reranker.scores(query, passages)
    assert scores.dtype == np.float32
    alone = Reranker.load(out / "model", mesh=mesh_from_text("data=1@0"))
    np.testing.assert_allclose(alone.scores(query, passages), scores, rtol=1e-4, atol=1e-4)
    model = reranker.model
    first, *others = model.tokenizer.encode_bare([query, *passages[:3], *passages[-2:]])
    expected = []
    for ids in others:
        row, types = model.frame.join(first, ids, model.config.max_length)
        mask = np.ones((1, len(row)), bool)
        made = apply_cross_encoder(
            model.config, model.params, row[None], mask, types[None], compute_dtype=np.dtype("float32")
        )
        expected.append(float(made[0]))
    np.testing.assert_allclose(scores[[0, 1, 2, 20, 21]], expected, rtol=1e-4, atol=1e-4)
    assert reranker.scores(query, []).shape == (0,)


def test_bad_texts_and_damage_are_refused(trained, tmp_path):
    _, out = trained
    reranker = Reranker.load(out)
    with pytest.raises(DataError, match="leave no room for a document"):
        reranker.scores("kaka " * 60, ["passage"])
    with pytest.raises(DataError, match="lone surrogate"):
        reranker.scores("kaka", ["\ud800"])
    with pytest.raises(DataError, match="none"):
        Reranker.load(tmp_path / "none")
    weights = next(path for path in (out / "model" / "params").rglob("*") if path.is_file() and path.stat().st_size > 9)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(VerificationError):
        Reranker.load(out)
    weights.write_bytes(whole)


def test_a_run_of_the_dev_queries_is_what_the_metric_reranks(folder, tmp_path):
    docs, _, qrels = made_up_records()
    run = {query: {doc.id: -float(place) for place, doc in enumerate(docs[:12])} for query in qrels["dev"]}
    write_run(tmp_path / "dev.trec", run, "dev")
    job = tiny_reranker_job(folder, data={"dev_run": str(tmp_path / "dev.trec"), "num_dev_candidates": 8})
    objective = job.objective()
    assert set(map(tuple, objective.dev.candidates.values())) == {tuple(doc.id for doc in docs[:8])}
    params = random_params(objective.init_params)
    measured = objective.evaluate(params, mesh_from_text(""))
    assert measured.keys() == {"rerank_nDCG@10", "rerank_RR@10"}
    # Of 24 dev queries those of d0 alone find theirs among the run's first eight.
    assert 0 < measured["rerank_RR@10"] <= 2 / 24


def test_below_the_depth_the_order_stays(trained):
    docs, queries, _ = made_up_records()
    passages, texts = {doc.id: doc.passage for doc in docs}, {query.id: query.text for query in queries}
    run = {queries[0].id: {f"d{row}": 50.0 - row for row in range(30)}, queries[1].id: {"d9": 1.0}}
    reranker = Reranker.load(trained[1], mesh=mesh_from_text("data=1@0"))
    made = rerank_run(reranker, run, texts, passages, 10)
    scores = made[queries[0].id]
    first = reranker.scores(queries[0].text, [docs[row].passage for row in range(10)])
    np.testing.assert_allclose([scores[f"d{row}"] for row in range(10)], first, rtol=1e-5, atol=1e-5)
    below = [scores[f"d{row}"] for row in range(10, 30)]
    assert max(below) < min(first)
    assert below == sorted(below, reverse=True)
    assert len(set(np.float32(below))) == 20
    assert list(made[queries[1].id]) == ["d9"]
