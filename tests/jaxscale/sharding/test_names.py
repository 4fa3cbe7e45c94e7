"""plan(pi(params)) = pi(plan(params)): names, the order of a tree, of operands and of equations play no part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import spec_text
from launch.recipes import all_recipes
from tests.jaxscale.sharding import transformers as t

LIMITS = Limits(small_leaf_bytes=0, max_flops_ratio=99)
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


def planned_steps():
    """The steps of all recipes that can be planned as they stand."""
    for name, recipe in sorted(all_recipes().items()):
        job = recipe()
        if hasattr(job, "planned_step"):
            yield pytest.param(job, id=name)


@pytest.mark.parametrize("job", list(planned_steps()))
def test_names_play_no_part_in_the_plan_of_any_recipe(job):
    try:
        step = job.planned_step()
    except UsageError as error:
        pytest.skip(f"the recipe needs a flag: {error}")
    leaves, structure = jax.tree.flatten(step.params)
    plain, _ = specs(step.loss, step.params, step.batch)
    names = [f"{i:03d}" for i in np.random.default_rng(0).permutation(len(leaves))]

    def renamed(params, batch):
        return step.loss(jax.tree.unflatten(structure, [params[name] for name in names]), batch)

    got, _ = specs(renamed, dict(zip(names, leaves, strict=True)), step.batch)
    by_path = {leaf.path: leaf.spec for leaf in got}
    assert [by_path[name] for name in names] == [leaf.spec for leaf in plain]
    assert any(axes for leaf in plain for axes in leaf.spec)
