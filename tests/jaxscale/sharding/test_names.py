"""plan(pi(params)) = pi(plan(params)): names, the order of a tree, of operands and of equations play no part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxscale import frozen
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import spec_text
from launch.recipes import all_recipes
from retrieval.reranking.job import RerankerJob
from tests.jaxscale.sharding import program_variations
from tests.jaxscale.sharding import transformers as t

# What is refused is another test's.
LIMITS = Limits(small_leaf_bytes=0, max_flops_ratio=99, replicated_leaf_bytes=2**40)
MESH = MeshSpec(data=2, fsdp=2, tensor=2)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def module_of(module, *inputs):
    """A Flax NNX module as a function of a plain tree."""
    graphdef, state = nnx.split(module)
    return lambda params, x: nnx.merge(graphdef, params)(x), t.abstract(nnx.to_pure_dict(state)), *inputs


def linen_block():
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            made = linen.Dense(16)(linen.gelu(linen.Dense(64)(linen.LayerNorm()(x))))
            return x + linen.MultiHeadDotProductAttention(num_heads=4)(made, made)

    x = floats(8, 5, 16)
    return Block().apply, jax.eval_shape(Block().init, jax.random.key(0), x), x


def experts():
    def loss(p, x):
        weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"]), 1)
        where = jax.nn.one_hot(chosen[..., 0], 4)
        made = jnp.einsum("bse,bsd->ebsd", where, x)
        made = jnp.einsum("ebsf,efd->ebsd", jax.nn.relu(jnp.einsum("ebsd,edf->ebsf", made, p["up"])), p["down"])
        return x + jnp.einsum("ebsd,bse->bsd", made, where * weights)

    return loss, {"router": floats(16, 4), "up": floats(4, 16, 32), "down": floats(4, 32, 16)}, floats(8, 5, 16)


def decoder():
    return t.next_token_loss(t.DECODER), t.abstract(t.init(t.DECODER)), t.abstract(t.random_batch())


def attention():
    return module_of(
        nnx.MultiHeadAttention(num_heads=4, in_features=16, qkv_features=32, decode=False, rngs=nnx.Rngs(0)),
        floats(8, 5, 16),
    )


COMPUTATIONS = {
    "decoder": decoder,
    "nnx attention": attention,
    "linen block": linen_block,
    "experts": experts,
}


def specs(loss, params, batch, mesh=MESH, **options):
    plan = derive(loss, params, batch, mesh, limits=LIMITS, **options)
    return [leaf for leaf in plan.leaves if leaf.role == "parameter"], plan


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", "expert=2,tensor=4"])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_renaming_and_reordering_the_tree_permutes_the_plan(name, mesh):
    loss, params, batch = COMPUTATIONS[name]()
    leaves, structure = jax.tree.flatten(params)
    options = {"optimizer": optax.adam(1e-3)}
    plain, whole = specs(loss, params, batch, MeshSpec.parse(mesh), **options)
    for seed in range(2):
        names = [f"{i:03d}" for i in np.random.default_rng(seed).permutation(len(leaves))]

        def renamed(params, batch, names=names):
            return loss(jax.tree.unflatten(structure, [params[name] for name in names]), batch)

        tree = dict(zip(names, leaves, strict=True))
        got, plan = specs(renamed, tree, batch, MeshSpec.parse(mesh), **options)
        by_path = {leaf.path: leaf for leaf in got}
        assert [by_path[name].spec for name in names] == [leaf.spec for leaf in plain]
        assert [by_path[name].rules for name in names] == [leaf.rules for leaf in plain]
        assert [(a.address, a.spec) for a in plan.activations] == [(a.address, a.spec) for a in whole.activations]
        moments = {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == "optimizer" and leaf.shape}
        assert moments == {f"0/{m}/{path}": leaf.spec for m in ("mu", "nu") for path, leaf in by_path.items()}


def heads(x):
    return x.reshape(*x.shape[:2], 4, 6)


def plain_attention(p, x):
    q, k, v = heads(x @ p["q"]), heads(x @ p["k"]), heads(x @ p["v"])
    weights = jax.nn.softmax(jnp.einsum("bshc,bthc->bhst", q, k))
    return jnp.einsum("bhst,bthc->bshc", weights, v).reshape(*x.shape[:2], 24) @ p["o"]


def swapped_attention(p, x):
    """The same with operands swapped, einsums for products, and keys before queries."""
    v = heads(jnp.einsum("df,bsd->bsf", p["v"], x))
    k = heads(jnp.einsum("df,bsd->bsf", p["k"], x))
    q = heads(jnp.einsum("df,bsd->bsf", p["q"], x))
    weights = jax.nn.softmax(jnp.einsum("bthc,bshc->bhst", k, q))
    return jnp.einsum("fd,bsf->bsd", p["o"], jnp.einsum("bthc,bhst->bshc", v, weights).reshape(*x.shape[:2], 24))


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,tensor=2", "data=2,tensor=4", "fsdp=8"])
def test_swapped_operands_einsums_and_reordered_equations_give_the_same_plan(mesh):
    params = {"q": floats(16, 24), "k": floats(16, 24), "v": floats(16, 24), "o": floats(24, 16)}
    plain, _ = specs(plain_attention, params, floats(8, 5, 16), MeshSpec.parse(mesh))
    swapped, _ = specs(swapped_attention, params, floats(8, 5, 16), MeshSpec.parse(mesh))
    assert [leaf.spec for leaf in swapped] == [leaf.spec for leaf in plain]
    assert any(any(leaf.spec) for leaf in plain)


def mlp(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.contrib.muon(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adam(1e-3), {"up": True, "down": False})),
        optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(),
    ],
    ids=["muon", "masked", "accumulated"],
)
def test_state_of_any_optimizer_is_split_as_its_parameter(optimizer):
    plan = derive(
        mlp, {"up": floats(8, 32), "down": floats(32, 8)}, floats(16, 8), MESH, optimizer=optimizer, limits=LIMITS
    )
    parameters = {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == "parameter"}
    assert {path: spec_text(spec) for path, spec in parameters.items()} == {
        "up": "fsdp, tensor",
        "down": "tensor, fsdp",
    }
    state = [leaf for leaf in plan.leaves if leaf.role == "optimizer" and len(leaf.shape) == 2]
    assert state
    assert {leaf.path: leaf.spec for leaf in state} == {
        leaf.path: parameters[leaf.path.rpartition("/")[2]] for leaf in state
    }


RECIPES = sorted(name for name, recipe in all_recipes().items() if hasattr(recipe(), "planned_step"))
WITH_EXPERTS = ("mixtral_8x7b",)
RECIPE_CASES = [(name, MeshSpec.parse(text)) for name in RECIPES for text in ("data=2,fsdp=2,tensor=2", "tensor=8")]
RECIPE_CASES += [(name, MeshSpec(expert=4, tensor=2)) for name in WITH_EXPERTS]
each_recipe = pytest.mark.parametrize(
    ("name", "mesh"),
    [
        # Heads that `tensor` does not divide, and parts of an axis, take as long as all else.
        pytest.param(*case, id="-".join(map(str, case)), marks=[pytest.mark.slow] if case[1].tensor == 8 else [])
        for case in RECIPE_CASES
    ],
)


@functools.cache
def step_of(name):
    """A recipe's training step; a recipe that starts from a model folder gets an encoder instead."""
    job = all_recipes()[name]()
    if getattr(job, "towers", None) is not None and job.towers.transformer is None:
        encoder = all_recipes()["two_tower_bert_base"]().towers.transformer
        job = dataclasses.replace(job, towers=dataclasses.replace(job.towers, init_from="", transformer=encoder))
    if isinstance(job, RerankerJob) and job.model.transformer is None:
        encoder = all_recipes()["bert_base"]().transformer
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, transformer=encoder))
    return job.planned_step()


@functools.cache
def plan_of_recipe(name, mesh):
    step = step_of(name)
    return derive(step.loss, step.params, step.batch, mesh, optimizer=step.optimizer, limits=LIMITS)


@each_recipe
def test_names_play_no_part_in_the_plan_of_any_recipe(name, mesh):
    step = step_of(name)
    plain = plan_of_recipe(name, mesh)
    leaves, structure = jax.tree.flatten(step.params)
    names = [f"{i:03d}" for i in np.random.default_rng(0).permutation(len(leaves))]

    # What is not trained is said by one name at the top, and stays there.
    held = {names[position] for position in frozen.positions(step.params)}

    def renamed(params, batch):
        flat = params | params.get(frozen.FROZEN, {})
        return step.loss(jax.tree.unflatten(structure, [flat[name] for name in names]), batch)

    by_name = dict(zip(names, leaves, strict=True))
    tree = {name: leaf for name, leaf in by_name.items() if name not in held}
    tree |= {frozen.FROZEN: {name: by_name[name] for name in held}} if held else {}
    got = derive(renamed, tree, step.batch, mesh, optimizer=step.optimizer, limits=LIMITS)
    by_path = {leaf.path.removeprefix(f"{frozen.FROZEN}/"): leaf for leaf in got.leaves if leaf.role == "parameter"}
    parameters = [leaf for leaf in plain.leaves if leaf.role == "parameter"]
    assert [by_path[name].spec for name in names] == [leaf.spec for leaf in parameters]
    assert [by_path[name].layout for name in names] == [leaf.layout for leaf in parameters]
    assert [(a.address, a.spec) for a in got.activations] == [(a.address, a.spec) for a in plain.activations]
    assert sorted(specs_of(got, "optimizer")) == sorted(specs_of(plain, "optimizer"))
    assert any(axes for leaf in parameters for axes in leaf.spec)


def specs_of(plan, role):
    return [(leaf.shape, leaf.spec) for leaf in plan.leaves if leaf.role == role]


VARIATIONS = {
    "swapped": program_variations.swapped,
    "einsums": program_variations.as_einsums,
    "reordered": functools.partial(program_variations.reordered, seed=0),
    "reordered again": functools.partial(program_variations.reordered, seed=1),
}
SEEN_ALWAYS = ("swapped", "einsums", "reordered")


def check_variation(variation, loss, params, batch, mesh, plain):
    plan = derive(VARIATIONS[variation](loss, params, batch), params, batch, mesh, limits=LIMITS)
    expected = {(leaf.role, leaf.path): (leaf.spec, leaf.layout) for leaf in plain.leaves if leaf.role != "optimizer"}
    assert {(leaf.role, leaf.path): (leaf.spec, leaf.layout) for leaf in plan.leaves} == expected
    if variation.startswith("reordered"):
        pinned = [sorted((a.shape, a.spec, a.rule) for a in one.activations) for one in (plan, plain)]
        assert pinned[0] == pinned[1]


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("name", COMPUTATIONS)
@pytest.mark.parametrize("text", ["data=2,fsdp=2,tensor=2", "expert=2,tensor=4"])
def test_how_a_computation_is_written_plays_no_part(name, variation, text):
    loss, params, batch = COMPUTATIONS[name]()
    plain = specs(loss, params, batch, MeshSpec.parse(text))[1]
    check_variation(variation, loss, params, batch, MeshSpec.parse(text), plain)


@pytest.mark.parametrize("variation", [*SEEN_ALWAYS, pytest.param("reordered again", marks=pytest.mark.slow)])
@each_recipe
def test_how_a_recipe_is_written_plays_no_part(name, mesh, variation):
    step = step_of(name)
    check_variation(variation, step.loss, step.params, step.batch, mesh, plan_of_recipe(name, mesh))


@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_variations_compute_the_same_from_other_programs(variation):
    draw = np.random.default_rng(0)
    shapes = {"q": (16, 24), "k": (16, 24), "v": (16, 24), "o": (24, 16)}
    params = {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x = jnp.asarray(draw.normal(size=(8, 5, 16)), jnp.float32)
    varied = VARIATIONS[variation](plain_attention, params, x)
    np.testing.assert_allclose(varied(params, x), plain_attention(params, x), rtol=1e-4, atol=1e-4)
    programs = [str(jax.make_jaxpr(function)(params, x)) for function in (varied, plain_attention)]
    assert programs[0] != programs[1]
