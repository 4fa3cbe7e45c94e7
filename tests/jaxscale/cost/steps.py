"""Small decoders whose cost the tests know by hand, their plans, and the programs of their gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxscale.cost.placement import Placement, place
from jaxscale.cost.programs import gradient_program
from jaxscale.mesh import MeshSpec
from jaxscale.nn import functional
from jaxscale.nn.families import decoder_config
from jaxscale.sharding.derive import derive
from jaxscale.sharding.jaxprs import Program
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.plan import ShardingPlan

CONFIG = decoder_config(
    num_layers=12,
    d_model=64,
    num_heads=8,
    num_kv_heads=4,
    d_ff=256,
    vocab_size=128,
    max_positions=16,
    tied_output=True,
)
BATCH, LENGTH = 16, 16
# Every matrix is split, the norms' scales are not.
LIMITS = Limits(small_leaf_bytes=4096, replicated_leaf_bytes=2**30)
OPTIMIZER = optax.adamw(1e-3)


def params() -> Any:
    return jax.eval_shape(lambda: functional.init_params(CONFIG, jax.random.key(0)))


def batch() -> dict[str, jax.ShapeDtypeStruct]:
    return {"tokens": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)}


def loss(params: Any, batch: Any, *, remat: bool) -> jax.Array:
    tokens = batch["tokens"]
    hidden = functional.apply(CONFIG, params, tokens, jnp.ones(tokens.shape, bool), remat=remat)
    logits = functional.logits(CONFIG, params, hidden)
    chosen = jax.lax.broadcasted_iota(jnp.int32, (1, 1, logits.shape[-1]), 2) == tokens[..., None]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1))


@functools.cache
def program(remat: bool) -> Program:
    return gradient_program(functools.partial(loss, remat=remat), params(), batch())


@functools.cache
def plan(mesh: str) -> ShardingPlan:
    return derive(
        functools.partial(loss, remat=True), params(), batch(), MeshSpec.parse(mesh), optimizer=OPTIMIZER, limits=LIMITS
    )


@functools.cache
def placement(mesh: str, remat: bool) -> Placement:
    leaves = [leaf for leaf in plan(mesh).leaves if leaf.role != "optimizer"]
    return place(program(remat), plan(mesh).mesh, leaves)
