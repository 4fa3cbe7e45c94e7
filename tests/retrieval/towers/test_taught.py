"""What towers learn of a re-ranker: the plain formulas, whole towers in chunks and on 8 devices, and which scores."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from retrieval.towers.encoder import apply_encoder
from retrieval.towers.loss import Contrastive
from retrieval.towers.mined_job import MinedTowerJob
from retrieval.towers.pair_loss import PairLoss
from retrieval.towers.rounds import Rounds
from tests.configs.on_meshes import COMPILED_FAST, everything_in, far_leaves, gradient_on_mesh
from tests.retrieval.towers.small_pairs import random_params, tiny_job, write_pairs

NUM_NEGATIVES, KEY = 2, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


def score_of(query, doc):
    """A made-up re-ranker's score, another for every pair."""
    return float(sum(ord(letter) * place for place, letter in enumerate(f"{query}/{doc}")) % 97) / 10 - 4


@pytest.fixture(scope="module")
def negatives(folder, tmp_path_factory):
    """Four negatives of every training query, with scores."""
    file = tmp_path_factory.mktemp("negatives") / "negatives.jsonl"
    table = tiny_job(folder).objective().pairs.table
    with file.open("w") as lines:
        for row, query in enumerate(table.query_ids):
            positives = [f"d{doc}" for doc in table.known_positives[row] if doc >= 0]
            docs = [f"d{(int(positives[0][1:]) + step) % 96}" for step in (9, 7, 5, 3)]
            line = {"query_id": query, "doc_ids": docs, "reranker_scores": [score_of(query, doc) for doc in docs]}
            line |= {"positive_ids": positives, "positive_reranker_scores": [score_of(query, d) for d in positives]}
            lines.write(json.dumps(line) + "\n")
    return file


def taught_job(folder, file, kind="margin_mse", **contrastive):
    data = {"hard_negatives": str(file), "num_hard_negatives": NUM_NEGATIVES}
    return tiny_job(folder, data=data, contrastive={"distill": kind, **contrastive})


@pytest.mark.parametrize("draws", ["step", "epoch"])
def test_a_batch_has_the_scores_of_its_own_documents(folder, negatives, draws):
    job = taught_job(folder, negatives)
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, hard_negative_draws=draws))
    objective = job.objective()
    table = objective.pairs.table
    for step in range(3):
        batch = objective.batch(step)
        query_rows = table.pairs[objective.pairs.schedule.indices(step), 0]
        expected = [
            [score_of(table.query_ids[row], f"d{doc}") for doc in docs]
            for row, docs in zip(query_rows, batch["document_ids"], strict=True)
        ]
        assert batch["taught_scores"].dtype == np.float32
        np.testing.assert_allclose(batch["taught_scores"], expected, rtol=1e-6)
    shapes = objective.batch_shapes()[0]["taught_scores"], job.planned_step().batch["taught_scores"]
    assert {shape.shape for shape in shapes} == {batch["taught_scores"].shape}


def plain(kind, scores, taught):
    """The formulas as the papers write them, query by query."""
    total = 0.0
    for ours, theirs in zip(scores, taught, strict=True):
        if kind == "margin_mse":
            margins = [((ours[0] - ours[p]) - (theirs[0] - theirs[p])) ** 2 for p in range(1, len(theirs))]
            total = total + sum(margins) / len(margins)
        else:
            soft, hard = jnp.exp(theirs) / jnp.sum(jnp.exp(theirs)), jnp.exp(ours) / jnp.sum(jnp.exp(ours))
            total = total + jnp.sum(soft * jnp.log(soft / hard))
    return total / len(taught)


@pytest.mark.parametrize(
    ("kind", "mesh", "more"),
    [
        ("margin_mse", "data=2,fsdp=2,tensor=2", {"cache_chunks": 2, "learn_temperature": True}),
        ("kl", "fsdp=8", {"cache_chunks": 2, "negatives": "ring", "matryoshka_dims": (8, 32)}),
    ],
)
def test_loss_and_gradients_are_those_of_one_plain_pass(folder, negatives, kind, mesh, more):
    objective = taught_job(folder, negatives, kind, distill_weight=0.3, distill_temperature=2.0, **more).objective()
    contrastive, batch = objective.computation.contrastive, objective.batch(0)
    with everything_in("float64"):
        computation = dataclasses.replace(objective.computation, compute_dtype="float64")
        params = jax.tree.map(np.float64, random_params(computation.init_params))
        batch = batch | {"taught_scores": np.float64(batch["taught_scores"])}

        def contrastive_alone(params):
            alone = dataclasses.replace(contrastive, distill="none", cache_chunks=1, negatives="gather")
            plainly = PairLoss(towers=computation.towers, contrastive=alone, compute_dtype="float64")
            return plainly.loss(params, batch, jax.random.key(KEY))[0]

        def expected_of(params):
            towers, temperature = computation.towers, jnp.asarray(contrastive.temperature)
            if contrastive.learn_temperature:
                temperature = jnp.exp(params["log_temperature"])
            queries, documents = (
                apply_encoder(
                    towers.config(side),
                    params["towers"]["shared"],
                    *(batch[f"{side}_{of}"].reshape(-1, batch[f"{side}_{of}"].shape[-1]) for of in ("tokens", "mask")),
                    compute_dtype=jnp.float64,
                )
                for side in ("query", "document")
            )
            total = contrastive_alone(params)
            for num_dims, weight in contrastive.prefixes(32):
                short, long = (of[:, :num_dims] for of in (queries, documents))
                short, long = (of / jnp.linalg.norm(of, axis=1)[:, None] for of in (short, long))
                long = long.reshape(len(short), 1 + NUM_NEGATIVES, num_dims)
                scores = [long[row] @ short[row] / temperature for row in range(len(short))]
                total = total + weight * 0.3 * plain(kind, scores, batch["taught_scores"] / 2.0)
            return total

        expected_loss, expected = jax.device_get(
            jax.jit(jax.value_and_grad(expected_of), compiler_options=COMPILED_FAST)(params)
        )
        spec = MeshSpec.parse(mesh)
        on = computation.on(spec)

        def loss(params, batch):
            return on.loss(params, batch, jax.random.key(KEY))[0]

        plan = derive(loss, params, batch, spec, limits=Limits(small_leaf_bytes=0))
        value, gradient = gradient_on_mesh(loss, params, batch, spec, plan=plan)
    assert value == pytest.approx(float(expected_loss), rel=1e-9)
    assert far_leaves(gradient, expected, tolerance=1e-8) == {}


def test_scores_that_are_not_there_are_refused(folder, negatives, tmp_path):
    lines = [json.loads(line) for line in negatives.read_text().splitlines()]

    def written(change):
        file = tmp_path / "changed.jsonl"
        file.write_text("".join(json.dumps(change(dict(line))) + "\n" for line in lines))
        return file

    bare = written(lambda line: {name: line[name] for name in ("query_id", "doc_ids")})
    with pytest.raises(UsageError, match="carry none; make them with `jaxscale rerank --negatives`"):
        taught_job(folder, bare).objective()
    without = written(lambda line: line | {"positive_ids": [], "positive_reranker_scores": []})
    with pytest.raises(DataError, match="has no re-ranker's score"):
        taught_job(folder, without).objective()
    short = written(lambda line: line | {"reranker_scores": line["reranker_scores"][:-1]})
    with pytest.raises(DataError, match="expected a finite number for each of 4 documents"):
        taught_job(folder, short).objective()
    endless = written(lambda line: line | {"positive_reranker_scores": [float("nan") for _ in line["positive_ids"]]})
    with pytest.raises(DataError, match=r"positive_reranker_scores is \(nan"):
        taught_job(folder, endless).objective()
    with pytest.raises(UsageError, match="learns a re-ranker's scores of hard negatives, but there are none"):
        tiny_job(folder, contrastive={"distill": "kl"}).check(MeshSpec(data=8))


def test_rounds_mine_negatives_without_scores(folder):
    job = tiny_job(folder, contrastive={"distill": "kl"})
    parts = {name: getattr(job, name) for name in ("towers", "data", "contrastive", "training", "operation")}
    with pytest.raises(UsageError, match="which negatives that the rounds mine do not carry"):
        MinedTowerJob(**parts, rounds=Rounds()).check(MeshSpec(data=8))


@pytest.mark.parametrize("change", [{"distill_weight": 0.0}, {"distill_temperature": -1.0}])
def test_weights_that_are_none_are_refused(change):
    with pytest.raises(UsageError, match="must be above 0; use distill=none"):
        Contrastive(**change)
