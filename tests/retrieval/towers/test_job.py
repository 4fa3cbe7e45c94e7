"""Jobs of dual towers: strict JSON, checks before anything compiles, an identity of hashes and not of paths."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxscale import typed_json
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.families import bert_config
from jaxscale.train.placement import place
from jaxscale.train.planned_step import derive_step
from retrieval.towers.job import DualTowerJob
from retrieval.towers.retriever_folder import read_retriever, save_retriever, with_query_tower
from tests.retrieval.towers.small_pairs import tiny_job, write_pairs
from tests.retrieval.towers.test_loading import write_decoder, write_model, write_retriever


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


NAMES = ("tokens", "mask")


def starting_from(folder, model, **towers):
    fields = {"init_from": str(model), "transformer": None} | towers
    return tiny_job(folder, towers=fields, data={"query_buckets": (8,), "document_buckets": (10,)})


def test_json_round_trip(folder):
    job = tiny_job(folder)
    assert typed_json.decode(DualTowerJob, json.loads(json.dumps(typed_json.encode(job)))) == job


def test_a_whole_job_passes_the_checks(folder):
    tiny_job(folder).check(MeshSpec(data=8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"folder": ""}}, "data.folder is not given; add `--data.folder DIR`"),
        ({"towers": {"transformer": None}}, "towers.init_from is not given; add `--towers.init-from DIR`"),
        ({"towers": {"init_from": "somewhere"}}, "brings its own transformer"),
        ({"data": {"document_buckets": (32, 64)}}, "goes beyond the transformer's max_positions=32"),
        ({"training": {"global_batch_size": 1}}, "which has no negatives"),
        ({"training": {"global_batch_size": 16, "grad_accum": 16}}, "which has no negatives"),
        (
            {"contrastive": {"cache_chunks": 3}},
            "cache_chunks=3 does not divide 16 examples; use 1 or 2 or 4",
        ),
        ({"contrastive": {"matryoshka_dims": (8, 64)}}, "goes beyond the vectors, which have 32 dims"),
        ({"contrastive": {"matryoshka_dims": (8, 16)}}, "must end with 32, all dims of the vectors"),
        ({"operation": {"best_metric": "ndcg"}}, "must be one of sample_nDCG@10, sample_RR@10"),
        (
            {"data": {"num_dev_queries": None, "num_dev_documents": None}},
            "operation.best_metric='sample_nDCG@10' must be one of nDCG@10, RR@10",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(folder, changes, said):
    with pytest.raises(UsageError) as refusal:
        tiny_job(folder, **changes).check(MeshSpec(data=1))
    assert said in str(refusal.value)


def test_chunks_must_divide_every_devices_examples(folder):
    job = tiny_job(folder, contrastive={"cache_chunks": 4})
    job.check(MeshSpec(data=2, tensor=4))
    with pytest.raises(UsageError, match="cache_chunks=4 does not divide 16 examples on a mesh that splits examples 8"):
        job.check(MeshSpec(data=4, fsdp=2))


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def test_the_planned_step_is_that_of_the_training_and_reads_no_data(folder, tmp_path):
    job = tiny_job(folder)
    step, objective = tiny_job(tmp_path / "nowhere").planned_step(), job.objective()
    assert shapes(step.params) == shapes(jax.eval_shape(objective.init_params, jax.random.key(0)))
    batch = dict(objective.batch(0))
    # How many relevant documents a query has is told by the data.
    width = batch["known_positives"].shape[1]
    assert step.batch["known_positives"].shape == (job.training.global_batch_size, 1)
    step.batch["known_positives"] = jax.ShapeDtypeStruct((job.training.global_batch_size, width), np.int32)
    assert shapes(step.batch) == shapes(batch)
    assert step.num_tokens == batch["query_tokens"].size + batch["document_tokens"].size
    key = jax.random.key(0)
    ours = jax.make_jaxpr(step.loss)(step.params, step.batch)
    theirs = jax.make_jaxpr(lambda params, batch: objective.loss(params, batch, key)[0])(step.params, step.batch)
    # Ours makes its key out of the seed first.
    assert [e.primitive for e in ours.eqns][-len(theirs.eqns) :] == [e.primitive for e in theirs.eqns]


def test_a_step_says_how_its_negatives_meet_and_what_that_costs(folder):
    """Of 16 queries with 32 dims on 8 devices; with M = 1 a ring adds 13 numbers to 3 x 32 of each query."""
    ring = tiny_job(folder, contrastive={"negatives": "ring"}).planned_step()
    assert ring.notes == ()
    (note,) = ring.on(MeshSpec(data=4, fsdp=2)).notes
    assert note == (
        "negatives of 16 queries over 8 devices: ring sends 6,976 bytes from each device, with 16 bytes of scores at a "
        "time; gather would send 3,584 bytes from each device, with 128 bytes of scores at a time"
    )
    (note,) = tiny_job(folder, training={"grad_accum": 2}).planned_step().on(MeshSpec(data=2)).notes
    assert note.startswith("negatives of 8 queries over 2 devices: gather sends 1,024 bytes")
    assert note.endswith("a microbatch")


@pytest.mark.parametrize(
    "contrastive", [{}, {"negatives": "ring", "cache_chunks": 2, "symmetric": True, "matryoshka_dims": (8, 32)}]
)
def test_what_is_explained_is_where_training_has_its_arrays(folder, contrastive):
    job = tiny_job(folder, training={"grad_accum": 2}, contrastive=contrastive)
    mesh = MeshSpec(data=2, fsdp=2, tensor=2)
    explained, trained = (
        derive_step(job.planned_step().on(mesh), mesh),
        place(job.objective(), job.training, make_mesh(mesh)).plan,
    )

    def places(plan):
        return {(leaf.role, leaf.path): (leaf.spec, leaf.layout, leaf.rules) for leaf in plan.leaves}

    assert places(explained) == {leaf: place for leaf, place in places(trained).items() if leaf[1] != "(key)"}


def test_a_batch_that_does_not_divide_is_refused_before_data_is_read(tmp_path):
    with pytest.raises(UsageError, match="global_batch_size=16 must be divisible by data=3; use 15 or 18"):
        tiny_job(tmp_path / "nowhere").check(MeshSpec(data=3))


def test_a_step_is_planned_with_the_model_to_start_from(folder, tmp_path):
    model = write_model(tmp_path / "model")
    step = starting_from(tmp_path / "nowhere", model).planned_step()
    wanted = starting_from(folder, model).objective().starting_params
    assert jax.tree.map(np.shape, wanted) == jax.tree.map(np.shape, step.params)
    with pytest.raises(UsageError, match=r"add `--towers\.init-from DIR`"):
        starting_from(folder, "").planned_step()


def test_the_identity_holds_hashes_and_no_paths(folder, tmp_path):
    job = tiny_job(folder)
    identity = job.objective().identity
    assert typed_json.encode(identity["training"]) == typed_json.encode(job.training)
    assert str(folder) not in json.dumps(identity)
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    moved = dataclasses.replace(
        tiny_job(elsewhere), operation=dataclasses.replace(job.operation, log_every_steps=7, mesh="fsdp=2")
    )
    assert moved.objective().identity == identity


def test_the_identity_changes_with_all_that_the_run_is(folder, tmp_path):
    negatives = tmp_path / "negatives.jsonl"
    train_queries = tiny_job(folder).objective().pairs.table.query_ids
    lines = [json.dumps({"query_id": query, "doc_ids": ["d8", "d16"]}) for query in train_queries]
    negatives.write_text("\n".join(lines))
    wider = bert_config(num_layers=1, d_model=16, num_heads=2, d_ff=64, vocab_size=512, max_positions=32)
    variants = [
        {},
        {"towers": {"pooling": "cls"}},
        {"towers": {"transformer": wider}},
        {"data": {"split": "dev"}},
        {"data": {"hard_negatives": str(negatives), "num_hard_negatives": 1}},
        {"contrastive": {"symmetric": True}},
        {"training": {"seed": 1}},
    ]
    identities = [typed_json.fingerprint(tiny_job(folder, **changes).objective().identity) for changes in variants]
    negatives.write_text("\n".join(lines).replace("d16", "d24"))
    identities.append(typed_json.fingerprint(tiny_job(folder, **variants[4]).objective().identity))
    assert len(set(identities)) == len(variants) + 1


def test_starting_weights_are_the_models(folder, tmp_path):
    model = write_model(tmp_path / "model")
    objective = starting_from(folder, model).objective()
    loaded = objective.starting_params["towers"]["shared"]["transformer"]
    assert objective.towers.query.max_length == 8
    shapes = jax.eval_shape(objective.init_params, jax.random.key(0))
    assert jax.tree.map(np.shape, objective.starting_params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    apart = starting_from(folder, model, shared=False, projection_dim=4).objective()
    for side in ("query", "document"):
        tower = apart.starting_params["towers"][side]
        jax.tree.map(np.testing.assert_array_equal, tower["transformer"], loaded)
        assert tower["projection"]["kernel"].shape == (8, 4)


def test_a_decoder_starts_a_tower_without_its_output(folder, tmp_path):
    model = write_decoder(tmp_path / "model")
    job = starting_from(folder, model, pooling="last", append_end=True, both_ways=True, shared=False, projection_dim=4)
    objective = job.objective()
    end = objective.tokenizer.token_id("</s>")
    batch = objective.batch(0)
    for side in ("query", "document"):
        tokens, mask = (batch[f"{side}_{name}"].reshape(-1, batch[f"{side}_{name}"].shape[-1]) for name in NAMES)
        assert (np.take_along_axis(tokens, mask.sum(axis=1)[:, None] - 1, axis=1) == end).all()
        assert "output" not in objective.starting_params["towers"][side]["transformer"]
    assert objective.towers.query.transformer.kind == "encoder"
    shapes = jax.eval_shape(objective.init_params, jax.random.key(0))
    assert jax.tree.map(np.shape, objective.starting_params) == jax.tree.map(np.shape, shapes)
    assert shapes == job.planned_step().params


def test_the_identity_names_the_model_started_from(folder, tmp_path):
    same = [starting_from(folder, write_model(tmp_path / name)).objective().identity for name in ("one", "two")]
    other = starting_from(folder, write_retriever(tmp_path / "three")).objective().identity
    assert same[0] == same[1]
    assert same[0]["towers"]["init_from"] != other["towers"]["init_from"]


def test_a_model_that_does_not_fit_is_refused(folder, tmp_path):
    model = write_model(tmp_path / "model")
    with pytest.raises(UsageError, match=r"data\.query_buckets ends at 16 tokens"):
        tiny_job(folder, towers={"init_from": str(model), "transformer": None}).objective()
    with pytest.raises(DataError, match="there is no such folder"):
        starting_from(folder, tmp_path / "nothing").objective()


def test_a_batch_larger_than_the_data_is_refused(folder):
    with pytest.raises(UsageError, match="global_batch_size=512 is more than the"):
        tiny_job(folder, training={"global_batch_size": 512}).objective()


def test_starting_from_another_folder_replaces_the_transformer(folder, tmp_path):
    job = tiny_job(folder).starting_from(str(tmp_path))
    assert job.towers.init_from == str(tmp_path)
    assert job.towers.transformer is None


def test_a_retriever_with_two_tokenizers_starts_two_towers_each_with_its_own(folder, tmp_path):
    towers = read_retriever(write_retriever(tmp_path / "retriever"))
    other = dataclasses.replace(towers.query, tokenizer=Tokenizer.train_wordpiece(["other words"] * 3, 40))
    save_retriever(tmp_path / "two", with_query_tower(towers, other))
    objective = starting_from(folder, tmp_path / "two", shared=False).objective()
    assert objective.query_tokenizer.fingerprint == other.tokenizer.fingerprint
    assert objective.tokenizer.fingerprint == towers.document.tokenizer.fingerprint
