"""A small query tower beside a large document tower: models and tokenizers of their own, one space, up to search."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.families import bert_config
from launch.cli import main
from retrieval.embed import embed_corpus
from retrieval.formats.beir import BeirFolder
from retrieval.retriever import Retriever
from retrieval.towers.loading import load_towers
from retrieval.towers.rounds import Rounds, job_of_round, run_of
from retrieval.towers.start import Towers
from tests.retrieval.towers.small_pairs import tiny_job, write_pairs
from tests.retrieval.towers.test_loading import BYTES, TOKENIZER, write_decoder, write_model

SMALL = bert_config(num_layers=1, d_model=4, num_heads=1, d_ff=8, vocab_size=70, max_positions=12, dropout_rate=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "beir")


@pytest.fixture
def models(tmp_path):
    """Of documents, a BERT; of queries, a decoder with another tokenizer."""
    return write_model(tmp_path / "documents"), write_decoder(tmp_path / "queries")


def job_from(folder, documents, *, data=None, **towers):
    towers = {"init_from": str(documents), "transformer": None, "shared": False, "projection_dim": 6} | towers
    buckets = {"query_buckets": (8,), "document_buckets": (10,)}
    return tiny_job(folder, towers=towers, data=buckets | (data or {}))


def test_each_tower_has_its_model_and_its_tokens(folder, models):
    documents, queries = models
    objective = job_from(folder, documents, query_init_from=str(queries)).objective()
    for side, model in (("query", queries), ("document", documents)):
        tower, loaded = objective.starting_params["towers"][side], load_towers(model).encoder(side)
        jax.tree.map(np.testing.assert_array_equal, tower["transformer"], loaded.params["transformer"])
        assert tower["projection"]["kernel"].shape == (8, 6)
    shapes = jax.eval_shape(objective.init_params, jax.random.key(0))
    assert jax.tree.map(np.shape, objective.starting_params) == jax.tree.map(np.shape, shapes)
    batch = objective.batch(0)
    row = int(objective.pairs.schedule.indices(0)[0])
    text = objective.pairs.table.query_ids[objective.pairs.table.pairs[row][0]]
    source = {query.id: query.text for query in BeirFolder.open(folder, check="sizes").queries()}
    expected = BYTES.encode_batch([source[text]], 8).ids[0]
    np.testing.assert_array_equal(batch["query_tokens"][0][batch["query_mask"][0]], expected)
    assert (batch["document_tokens"][..., 0] == TOKENIZER.opening_ids[0]).all()
    # No table has too few rows for what fills.
    assert batch["query_tokens"][~batch["query_mask"]].max(initial=0) == 0


def test_what_is_exported_is_searched(folder, models, tmp_path):
    documents, queries = models
    objective = job_from(folder, documents, query_init_from=str(queries)).objective()
    objective.export(objective.starting_params, tmp_path / "retriever")
    towers = load_towers(tmp_path / "retriever")
    assert (towers.query.tokenizer.fingerprint, towers.document.tokenizer.fingerprint) == (
        BYTES.fingerprint,
        TOKENIZER.fingerprint,
    )
    assert towers.contract.num_dims == 6
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    embed_corpus(towers, BeirFolder.open(folder, check="sizes"), tmp_path / "vectors", mesh)
    retriever = Retriever.load(tmp_path / "retriever", vectors=tmp_path / "vectors", mesh=mesh)
    assert len(retriever.search("some words", k=3)) == 3


def test_a_query_tower_from_nothing_takes_the_tokenizer_of_documents(folder, models):
    job = job_from(folder, models[0], query_transformer=SMALL)
    objective = job.objective()
    assert objective.query_tokenizer is objective.tokenizer
    assert objective.towers.query.transformer.d_model == 4
    drawn = objective.starting_params["towers"]["query"]
    assert drawn["projection"]["kernel"].shape == (4, 6)
    assert job.planned_step().params == jax.eval_shape(objective.init_params, jax.random.key(0))
    with pytest.raises(UsageError, match=r"query_transformer\.vocab_size=20 is less than the \d+ tokens"):
        job_from(folder, models[0], query_transformer=dataclasses.replace(SMALL, vocab_size=20)).objective()
    with pytest.raises(UsageError, match="query tower gives vectors of 4 dims, the document tower of 8; give both"):
        job_from(folder, models[0], query_transformer=SMALL, projection_dim=None).objective()


def test_both_from_nothing(folder):
    job = tiny_job(
        folder,
        towers={"shared": False, "query_transformer": dataclasses.replace(SMALL, vocab_size=512, max_positions=16)}
        | {"projection_dim": 6},
    )
    objective = job.objective()
    assert objective.starting_params is None
    assert job.planned_step().params == jax.eval_shape(objective.init_params, jax.random.key(0))
    with pytest.raises(UsageError, match=r"data\.query_buckets=.* goes beyond the transformer's max_positions=12"):
        tiny_job(folder, towers={"shared": False, "query_transformer": SMALL}).check(MeshSpec(data=1))


def test_the_identity_names_both_models(folder, models):
    documents, queries = models
    plain = job_from(folder, documents).objective().identity["towers"]
    own = job_from(folder, documents, query_init_from=str(queries)).objective().identity["towers"]
    assert not [name for name in plain if name.startswith("query_") and name != "query_prefix"]
    assert own["init_from"] == plain["init_from"] != own["query_init_from"]
    assert own["query_tokenizer"] == BYTES.fingerprint
    assert str(queries) not in json.dumps(own)


def test_what_does_not_fit_is_refused(folder, models):
    with pytest.raises(
        UsageError, match=r"query_init_from is given, but towers\.shared=True; add `--towers\.no-shared`"
    ):
        Towers(query_init_from="x")
    with pytest.raises(UsageError, match="brings its own transformer"):
        Towers(shared=False, query_init_from="x", query_transformer=SMALL)
    with pytest.raises(UsageError, match="crops are tokens of documents"):
        job_from(folder, models[0], query_init_from=str(models[1]), data={"crops_per_document": 1}).objective()
    with pytest.raises(UsageError, match=r"data\.query_buckets ends at 16 tokens, but the model .*queries has max_pos"):
        job_from(folder, models[0], query_init_from=str(models[1]), data={"query_buckets": (16,)}).objective()


@pytest.mark.slow
def test_from_the_command_line_to_hits(folder, models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", "two_tower_tiny", "--data.folder", str(folder), "--init-from", "documents", "--out", "run"]
    towers = ["--towers.query-init-from", "queries", "--towers.no-shared", "--towers.projection-dim", "6"]
    data = ["--data.query-buckets", "8", "--data.document-buckets", "10", "--training.num-steps", "2"]
    assert main([*train, *towers, *data, "--operation.compile-cache", "off"]) == 0
    assert main(["embed", "--model", "run", "--corpus", str(folder), "--out", "vectors"]) == 0
    capsys.readouterr()
    search = ["search", "--model", "run", "--vectors", "vectors", "--corpus", str(folder), "--query", "some words"]
    assert main([*search, "--k", "3"]) == 0
    assert "d" in capsys.readouterr().out


@pytest.mark.parametrize("own", ["query_init_from", "query_transformer"])
def test_a_later_round_starts_from_both_towers_of_the_round_before(folder, models, tmp_path, own):
    job = job_from(folder, models[0], **{own: str(models[1]) if own == "query_init_from" else SMALL})
    first = job.objective()
    trained = jax.tree.map(lambda leaf: leaf + 1, first.starting_params)
    first.export(trained, run_of(tmp_path, 0) / "model")
    second = dataclasses.replace(job_of_round(job, Rounds(), 1, tmp_path), data=job.data).objective()
    for side in ("query", "document"):
        jax.tree.map(np.testing.assert_array_equal, second.starting_params["towers"][side], trained["towers"][side])
    origin = job_of_round(job, Rounds(start="origin"), 1, tmp_path)
    assert origin.towers == job.towers


def test_a_query_prefix_that_only_the_tokenizer_of_documents_finds_too_long_is_no_matter(folder, models):
    bert, decoder = models
    job = job_from(folder, decoder, query_init_from=str(bert), query_prefix="some more words to make ")
    assert job.objective().batch(0)["query_tokens"].shape[1] == 8


def test_a_query_tower_of_a_model_beside_documents_without_one_is_refused(folder):
    job = tiny_job(folder, towers={"shared": False, "query_init_from": "small"})
    for refuse in (lambda: job.check(MeshSpec(data=1)), job.planned_step):
        with pytest.raises(UsageError, match=r"query_init_from='small' needs .* but towers\.init_from='' names none"):
            refuse()


def test_crops_of_a_folder_with_two_tokenizers_are_refused_by_its_name(folder, models, tmp_path):
    objective = job_from(folder, models[0], query_init_from=str(models[1])).objective()
    objective.export(objective.starting_params, tmp_path / "both")
    with pytest.raises(UsageError, match=r"those of queries are others in towers\.init_from='.*both'; use 0"):
        job_from(folder, tmp_path / "both", data={"crops_per_document": 1}).objective()
