"""Any mesh of 8 devices and any shapes: a plan that divides, uses an axis once and that jit takes, or a refusal."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import JaxscaleError
from jaxscale.mesh import AXES, MeshSpec, make_mesh
from jaxscale.nn import functional
from jaxscale.nn.families import decoder_config
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import DEFAULT_LIMITS, Limits

# Each of them: what is refused by default is to be a plan that holds all the same.
LIMITS = (DEFAULT_LIMITS, Limits(small_leaf_bytes=0, max_flops_ratio=99, replicated_leaf_bytes=2**40))
OPTIMIZER = optax.adamw(1e-3)
COMPILED_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

sizes = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24])
# Sizes that meshes divide come up often enough for plans beside the refusals.
even = st.sampled_from([8, 16, 24, 32, 48])
widths = st.one_of(even, even, sizes)
examples = st.one_of(st.sampled_from([8, 16]), st.sampled_from([8, 16]), sizes)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A loss with the shapes it is for."""

    loss: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@st.composite
def meshes(draw):
    """A size for each axis, 8 devices in all; those that any computation can use come up more often."""
    ways = dict.fromkeys(AXES, 1)
    axes = draw(st.sampled_from([("data", "fsdp", "tensor"), ("fsdp", "tensor"), ("data", "fsdp", "tensor"), AXES]))
    for _ in range(3):
        ways[draw(st.sampled_from(axes))] *= 2
    return MeshSpec(**ways)


@st.composite
def mlps(draw):
    width, hidden, out, batch = draw(widths), draw(widths), draw(widths), draw(examples)
    params = {"up": floats(width, hidden), "bias": floats(hidden), "down": floats(hidden, out)}
    return Computation(
        lambda p, x: jnp.mean((jax.nn.gelu(x @ p["up"] + p["bias"][None, :]) @ p["down"]) ** 2),
        params,
        floats(batch, width),
    )


@st.composite
def fused_projections(draw):
    """Two or three parts of one matmul, multiplied with each other."""
    width, part, num_parts, batch = draw(widths), draw(widths), draw(st.integers(2, 3)), draw(examples)

    def loss(p, x):
        first, *others = jnp.split(x @ p["fused"], num_parts, axis=-1)
        return jnp.mean((math.prod(others, start=jax.nn.silu(first)) @ p["down"]) ** 2)

    params = {"fused": floats(width, num_parts * part), "down": floats(part, width)}
    return Computation(loss, params, floats(batch, width))


@st.composite
def attentions(draw):
    """Grouped heads: each key-value head is read by a group of query heads."""
    kv, group, head = draw(sizes), draw(st.integers(1, 4)), draw(sizes)
    width, batch, length = draw(widths), draw(examples), draw(sizes)

    def loss(p, x):
        q = (x @ p["q"]).reshape(batch, length, kv, group, head)
        k, v = ((x @ p[name]).reshape(batch, length, kv, head) for name in "kv")
        weights = jax.nn.softmax(jnp.einsum("bskgc,btkc->bkgst", q, k))
        mixed = jnp.einsum("bkgst,btkc->bskgc", weights, v)
        return jnp.mean((mixed.reshape(batch, length, kv * group * head) @ p["o"]) ** 2)

    inner = kv * group * head
    params = {"q": floats(width, inner), "k": floats(width, kv * head), "v": floats(width, kv * head)}
    return Computation(loss, params | {"o": floats(inner, width)}, floats(batch, length, width))


@st.composite
def transformers(draw):
    kv, length = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(sizes)
    config = decoder_config(
        num_layers=2,
        d_model=draw(widths),
        num_heads=kv * draw(st.integers(1, 3)),
        num_kv_heads=kv,
        head_dim=2 * draw(st.integers(1, 6)),
        d_ff=draw(widths),
        vocab_size=draw(st.one_of(even, st.integers(2, 70))),
        max_positions=length,
        tied_output=draw(st.booleans()),
    )

    def loss(params, batch):
        hidden = functional.apply(config, params, batch["tokens"], batch["mask"], remat=True)
        scores = jax.nn.log_softmax(functional.logits(config, params, hidden))
        return -jnp.mean(jnp.take_along_axis(scores, batch["targets"][..., None], axis=-1))

    params = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    shape = (draw(examples), length)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = {"tokens": tokens, "targets": tokens, "mask": jax.ShapeDtypeStruct(shape, jnp.bool_)}
    return Computation(loss, params, batch)


def lowered(computation, spec, limits):
    """The gradient under its plan, as jit takes it; None where the mesh was refused in words."""
    loss, params, batch = computation.loss, computation.params, computation.batch
    try:
        plan = derive(loss, params, batch, spec, optimizer=OPTIMIZER, limits=limits)
    except JaxscaleError as refusal:
        words = str(refusal)
    else:
        words = None
    if words is not None:
        assert words.startswith(f"mesh {spec} does not suit this computation:\n  ")
        return None
    for array in (*plan.leaves, *plan.activations):
        entries = [entry for axes in array.spec for entry in axes]
        assert len(set(entries)) == len(entries)
        for size, axes in zip(array.shape, array.spec, strict=True):
            assert size % math.prod(ways_of(spec, entry) for entry in axes) == 0
        for left, right in itertools.combinations(entries, 2):
            assert not share_devices(spec, left, right)
    mesh = make_mesh(spec, jax.devices()[: spec.num_devices])
    gradient = jax.value_and_grad(apply_plan(plan, loss, mesh, params, batch))
    places = tuple(plan.shardings(mesh, tree) for tree in (params, batch))
    return jax.jit(gradient, in_shardings=places, out_shardings=(None, places[0])).lower(params, batch)


def part(spec, entry):
    """An axis, and between which strides of it the entry goes: `tensor[2:4]` is from 2 to 4, `tensor` from 1 to all."""
    axis, _, rest = entry.partition("[")
    start, _, end = rest.rstrip("]").partition(":")
    return axis, int(start or 1), int(end or spec.sizes[axis])


def ways_of(spec, entry):
    _, start, end = part(spec, entry)
    return end // start


def share_devices(spec, left, right):
    (axis, start, end), (other, first, last) = part(spec, left), part(spec, right)
    return axis == other and max(start, first) < min(end, last)


@pytest.mark.parametrize("computations", [mlps(), fused_projections(), attentions()], ids=["mlp", "fused", "attention"])
def test_functions_get_a_plan_that_jit_takes_or_are_refused(computations):
    found = []

    @settings(deadline=None, derandomize=True, database=None, max_examples=30)
    @given(computation=computations, spec=meshes(), limits=st.sampled_from(LIMITS))
    def holds(computation, spec, limits):
        found.append(lowered(computation, spec, limits) is not None)

    holds()
    assert True in found
    assert False in found


def test_transformers_get_a_plan_that_jit_takes_or_are_refused():
    found = []

    @settings(deadline=None, derandomize=True, database=None, max_examples=10)
    @given(computation=transformers(), spec=meshes(), limits=st.sampled_from(LIMITS))
    def holds(computation, spec, limits):
        found.append(lowered(computation, spec, limits) is not None)

    holds()
    assert True in found
    assert False in found


@pytest.mark.slow
@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(
    computation=st.one_of(mlps(), fused_projections(), attentions(), transformers()),
    spec=meshes(),
    limits=st.sampled_from(LIMITS),
)
def test_many_more(computation, spec, limits):
    lowered(computation, spec, limits)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, database=None, max_examples=12)
@given(
    computation=st.one_of(fused_projections(), attentions(), transformers()),
    spec=meshes(),
)
def test_what_jit_takes_compiles(computation, spec):
    program = lowered(computation, spec, LIMITS[1])
    if program is not None:
        assert program.compile(COMPILED_FAST).input_shardings
