"""Families: what each run is, what counts as a parameter, and what is refused before anything is read."""

import dataclasses
import json

import jax
import pytest

from configs.scaling import two_tower_family
from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.nn.families import bert_config
from retrieval.scaling.family import Size, TowerFamily
from retrieval.towers.encoder import init_towers
from retrieval.towers.start import planned_towers
from tests.retrieval.scaling.small_family import small_family

MESH = MeshSpec(data=1)
SMALL = bert_config(num_layers=1, d_model=16, num_heads=1, d_ff=8, vocab_size=70, max_positions=64, dropout_rate=0.0)


def with_parts(family, **parts):
    """The family with fields of parts of its job changed, as `data={"split": "dev"}`."""
    changed = {name: dataclasses.replace(getattr(family.job, name), **fields) for name, fields in parts.items()}
    return dataclasses.replace(family, job=dataclasses.replace(family.job, **changed))


def test_the_recipe_is_data_and_lacks_its_folder_only():
    family = two_tower_family()
    assert typed_json.decode(TowerFamily, json.loads(json.dumps(typed_json.encode(family)))) == family
    with pytest.raises(UsageError, match=r"add `--job\.data\.folder DIR`"):
        family.check(MESH)
    with_parts(family, data={"folder": "somewhere"}).check(MESH)
    assert len(family.sizes) >= 5
    assert len(family.num_pairs) >= 3
    assert sorted(family.sizes, key=family.num_params) == list(family.sizes)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("projection_dim", [None, 8])
def test_parameters_are_all_leaves_but_the_tables(tmp_path, shared, projection_dim):
    family = small_family(tmp_path, num_layers=(2,), widths=(48,))
    family = with_parts(family, towers={"shared": shared, "projection_dim": projection_dim})
    size = family.sizes[0]
    towers = dataclasses.replace(family.job.towers, transformer=family.transformer(size))
    shapes = jax.eval_shape(lambda: init_towers(planned_towers(towers, (16, 32)), jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    counted = [leaf.size for path, leaf in leaves if path[-1].key != "table"]
    tables = [leaf.size for path, leaf in leaves if path[-1].key == "table"]
    assert len(tables) == 3 * (1 if shared else 2)
    assert family.num_params(size) == sum(counted)


def test_a_size_keeps_the_width_of_heads_and_the_ratio_of_the_mlp(tmp_path):
    base = small_family(tmp_path).job.towers.transformer
    made = small_family(tmp_path).transformer(Size(num_layers=3, width=64))
    assert (made.num_layers, made.d_model, made.head_dim) == (3, 64, base.head_dim)
    assert made.num_heads == made.num_kv_heads == 64 // base.head_dim
    assert made.d_ff / made.d_model == base.d_ff / base.d_model


def test_runs_differ_in_their_length_alone_and_their_schedule_ends_with_them(tmp_path):
    family = small_family(tmp_path, num_pairs=(32, 64, 100), num_epochs=3)
    lengths = [family.training(run).num_steps for run in family.runs]
    assert lengths == [6, 12, 19]  # 3 * 100 / 16, rounded up
    for run in family.runs:
        training = family.training(run)
        assert training.optimizer.schedule.decay_steps == training.num_steps
        job = family.job_of(run, tmp_path / "data", tmp_path / "start")
        assert job.towers.init_from == str(tmp_path / "start")
        assert job.data.split == f"pairs-{run.num_pairs}"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"data": {"folder": ""}}, "job.data.folder is not given"),
        ({"data": {"crops_per_document": 1}}, "job.data.crops_per_document=1 must be 0"),
        ({"data": {"hard_negatives": "x", "num_hard_negatives": 1}}, "job.data.num_hard_negatives=1 must be 0"),
        ({"contrastive": {"learn_temperature": True}}, "learn_temperature=True"),
        ({"operation": {"best_metric": "sample_nDCG@10"}}, "best_metric='sample_nDCG@10' must be empty"),
        ({"towers": {"init_from": "bert", "transformer": None}}, "a family starts from random weights"),
        (
            {"towers": {"shared": False, "query_init_from": "bert"}},
            "job.towers.query_init_from='bert': a family starts from random weights",
        ),
        ({"towers": {"shared": False, "query_transformer": SMALL}}, "job.towers.query_transformer=TransformerConfig("),
        ({"training": {"global_batch_size": 64}}, "global_batch_size=64"),
    ],
)
def test_a_job_that_no_family_can_be_made_of_is_refused(tmp_path, parts, message):
    with pytest.raises(UsageError) as refused:
        with_parts(small_family(tmp_path), **parts).check(MESH)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": ()}, "widths=()"),
        ({"widths": (32, 64)}, "widths=(32, 64) and num_layers=(1,)"),
        ({"widths": (32, 32), "num_layers": (1, 1)}, "names one twice"),
        ({"num_layers": (0,)}, "num_layers=(0,)"),
        ({"num_pairs": (64, 32)}, "num_pairs=(64, 32)"),
        ({"num_epochs": 0}, "num_epochs=0"),
    ],
)
def test_fields_that_make_no_family_are_refused(tmp_path, fields, message):
    with pytest.raises(UsageError) as refused:
        small_family(tmp_path, **fields)
    assert message in str(refused.value)


def test_a_width_that_heads_do_not_divide_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"widths: 40 must be a multiple of the transformer's head_dim=16"):
        small_family(tmp_path, widths=(40,)).check(MESH)


def test_a_job_that_does_not_suit_one_of_the_sizes_is_refused(tmp_path):
    family = with_parts(
        small_family(tmp_path, num_layers=(1, 1), widths=(32, 16)), contrastive={"matryoshka_dims": (32,)}
    )
    with pytest.raises(UsageError, match="matryoshka_dims"):
        family.check(MESH)


def test_clusters_are_named_by_what_they_say_and_not_by_their_place(tmp_path):
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for place, cluster in zip(places, (1, 1, 2), strict=True):
        place.write_text(json.dumps({"doc_id": "d0", "cluster": cluster}) + "\n")
    family = small_family(tmp_path)
    same, moved, other = (with_parts(family, data={"clusters": str(place)}).identity("corpus") for place in places)
    assert same == moved != other
    with pytest.raises(DataError, match="clusters: there is no file"):
        with_parts(family, data={"clusters": str(tmp_path / "nowhere")}).identity("corpus")
