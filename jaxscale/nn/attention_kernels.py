"""Kernels in the place of attention calls: found by their mark, chosen by platform, run on each device's part.

XLA can't partition a kernel. So each runs in a `shard_map` island, in which a device has the examples and heads that
the plan gives it; every query finds its keys and values there, and nothing moves.

Reference: splash attention, jax/experimental/pallas/ops/tpu/splash_attention; Dao 2023, "FlashAttention-2",
https://arxiv.org/abs/2307.08691
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.extend.core import JaxprEqn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int

from jaxscale.errors import UsageError
from jaxscale.nn.attention_blockwise import attend_by_blocks
from jaxscale.nn.attention_call import AttentionCall
from jaxscale.nn.attention_choice import (
    SPLASH_BLOCK,
    AttentionSetting,
    Case,
    Choice,
    Kernel,
    choose,
    has_kernel,
    summary,
)
from jaxscale.nn.attention_recomputed import attend_recomputing
from jaxscale.sharding import jaxprs, rewrite
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.rewrite import Operation
from jaxscale.sharding.stored import Replacing

# Positions in a block, the largest first. Splash attention's own default is 128; a larger block reads keys and values
# fewer times, and 512 of them with heads of 256 stay below the 16 MiB of a TPU's vector memory.
_BLOCKS = (512, 256, SPLASH_BLOCK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where the plan has an attention's operands.

    Attributes:
      query: of [B S H C], on the mesh that the plan's shardings are on.
      key: of [B T K C]; of the values too.
    """

    query: NamedSharding
    key: NamedSharding

    def misplaced(self, num_kv_heads: int) -> str | None:
        """Why a device's part can't be computed by itself; None where it can.

        Query head h reads key-value head h // (H / K). A device has both if keys are split as queries are, or if it has
        one head of them, for all the queries it has.

        Args:
          num_kv_heads: K.
        """
        query, key = _entries(self.query), _entries(self.key)
        if query[1] or key[1]:
            return f"positions are split over {'*'.join((*query[1], *key[1]))}"
        if query[3] or key[3]:
            return f"the width of heads is split over {'*'.join((*query[3], *key[3]))}"
        if query[0] != key[0]:
            return "queries and keys have their examples on different devices"
        if query[2][: len(key[2])] != key[2]:
            return "key-value heads are split over other devices than query heads"
        if query[2] != key[2] and math.prod(self.key.mesh.shape[axis] for axis in key[2]) != num_kv_heads:
            return f"{num_kv_heads} key-value heads are split in fewer parts than query heads, several in each"
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundCall:
    """An attention call of a program.

    Attributes:
      call: what its mark says.
      places: where its operands are; None where the plan does not say.
      case: what there is to choose by.
    """

    call: AttentionCall
    places: Places | None
    case: Case


def find_calls(jaxpr: Any, plan: ShardingPlan, mesh: Mesh) -> dict[Address, FoundCall]:
    """The attention calls of a program, by their addresses.

    Args:
      jaxpr: the program that the plan is of.
      plan: says where the heads are that matmuls make beside a call.
      mesh: of the plan's spec.
    """
    pins = plan.activation_shardings(mesh)
    platform = platform_of(mesh)
    found = {}
    made: dict[tuple[Address, tuple[int, ...]], NamedSharding] = {}
    for address, equation in rewrite.equations(jaxpr):
        for output, variable in enumerate(equation.outvars):
            if (address, output) in pins:
                made[address[:-1], jaxprs.shape_of(variable)] = pins[address, output][-1]
        call = jaxprs.mark_of(equation)
        if isinstance(call, AttentionCall):
            query, key = (jaxprs.shape_of(operand) for operand in equation.invars[:2])
            places = _places(made.get((address[:-1], query)), made.get((address[:-1], key)), mesh)
            found[address] = FoundCall(call=call, places=places, case=_case(call, equation, places, platform))
    return found


def choices(calls: Mapping[Address, FoundCall], setting: AttentionSetting) -> dict[Address, Choice]:
    """What computes every call.

    Raises:
      UsageError: the setting names a kernel that can't compute one of them.
    """
    return {address: choose(setting, found.case) for address, found in calls.items()}


def replacements(jaxpr: Any, plan: ShardingPlan, mesh: Mesh, setting: AttentionSetting) -> dict[Address, Operation]:
    """The kernels that take the place of a program's attention calls; those that stay plain are not named.

    Args:
      jaxpr: the program.
      plan: of that program.
      mesh: of the plan's spec; its devices say the platform.
      setting: the user's.

    Raises:
      UsageError: as `choices`.
    """
    calls = find_calls(jaxpr, plan, mesh)
    if not calls and setting not in ("auto", "plain"):
        raise UsageError(f"attention={setting}: the model has no attention of jaxscale.nn; use auto or plain")
    made: dict[Address, Operation] = {}
    for address, choice in choices(calls, setting).items():
        found = calls[address]
        if choice.kernel != "plain" and found.places is not None:
            made[address] = Island(call=found.call, kernel=choice.kernel, places=found.places)
    return made


def replacing(plan: ShardingPlan, mesh: Mesh, setting: AttentionSetting) -> Replacing | None:
    """`replacements` for `apply_plan`; None where no program would change, and none has to be looked at."""
    if not has_kernel(setting, platform_of(mesh)):
        return None
    return lambda jaxpr: replacements(jaxpr, plan, mesh, setting)


def described(
    loss: Callable[..., Any], plan: ShardingPlan, mesh: Mesh, setting: AttentionSetting, *arguments: Any
) -> tuple[str, ...]:
    """What computes a loss's attention, and why, for people; where a platform has no kernel, that, whatever the model.

    Args:
      loss: traceable.
      plan: of its program.
      mesh: of the plan's spec.
      setting: the user's.
      *arguments: of the loss, or their shapes.

    Raises:
      UsageError: as `choices`.
    """
    if not has_kernel(setting, platform_of(mesh)):
        why = "attention=plain" if setting == "plain" else f"there is no kernel for {platform_of(mesh)}"
        return (f"plain ({why})",)
    calls = find_calls(rewrite.trace(loss, *arguments).jaxpr, plan, mesh)
    return summary(choices(calls, setting).values()) or ("no attention of jaxscale.nn",)


def platform_of(mesh: Mesh) -> str:
    """`cpu`, `tpu`, `cuda`..., of the devices of a mesh, which may be described ones."""
    device = mesh.devices.flat[0]
    if device.platform != "gpu":
        return str(device.platform)
    return "cuda" if "cuda" in device.client.platform_version else "rocm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Island:
    """An attention call computed by a kernel, each device its part.

    Attributes:
      call: what is computed, and what its operands are.
      kernel: by which.
      places: of the operands; the result is where the queries are.
      interpret: whether splash attention is interpreted, which any platform can do, slowly.
    """

    call: AttentionCall
    kernel: Kernel
    places: Places
    interpret: bool = False

    def __call__(
        self, query: Float[Array, "B S H C"], key: Float[Array, "B T K C"], value: Float[Array, "B T K C"], *rest: Any
    ) -> Float32[Array, "B S H C"]:
        """Takes what the call takes, and returns what it returns."""
        given = dict(zip(self.call.operands, rest, strict=True))
        groups = tuple(given[name] for name in ("query_groups", "key_groups") if name in given)
        mesh, heads, keys = self.places.query.mesh, self.places.query.spec, self.places.key.spec
        rows = P(*heads[:1])
        # One device has it all. In an island its gradients would be summed over one device each, and XLA runs such sums
        # on CPU in one order: of two towers, one would wait for the other.
        island = self._of_device
        if mesh.size > 1:
            island = jax.shard_map(
                self._of_device,
                mesh=mesh,
                in_specs=(heads, keys, keys, *(rows for _ in groups)),
                out_specs=heads,
                # What a kernel makes is not typed by the axes that it varies over.
                check_vma=False,
            )
        # Jitted, so that the arrays that a kernel closes over belong to the equation.
        made: Float32[Array, "B S H C"] = jax.jit(island)(query, key, value, *groups)
        return made

    def _of_device(
        self, query: Float[Array, "b S h C"], key: Float[Array, "b T k C"], value: Float[Array, "b T k C"], *groups: Any
    ) -> Float32[Array, "b S h C"]:
        if self.kernel == "blockwise":
            return attend_by_blocks(query, key, value, *groups, scaled=self.call.scaled)
        if self.kernel == "recomputed":
            return attend_recomputing(query, key, value, *groups, scaled=self.call.scaled)
        if self.call.scaled:
            query = query / jnp.asarray(math.sqrt(query.shape[-1]), query.dtype)
        if self.kernel == "cudnn":
            made = jax.nn.dot_product_attention(
                query, key, value, scale=1.0, is_causal=self.call.causal, implementation="cudnn"
            )
        else:
            made = _splash(query, key, value, *groups, causal=self.call.causal, interpret=self.interpret)
        return made.astype(jnp.float32)


def _splash(
    query: Float[Array, "B S H C"],
    key: Float[Array, "B T K C"],
    value: Float[Array, "B T K C"],
    *groups: Int[Array, "..."],
    causal: bool,
    interpret: bool,
) -> Float[Array, "B S H C"]:
    """softmax(query key^T) value by splash attention, in the dtype of the query; sums are in float32."""
    lengths = query.shape[1], key.shape[1]
    of_head = splash_mask.CausalMask(lengths) if causal else splash_mask.FullMask(lengths)
    of_query, of_key = (next(block for block in _BLOCKS if length % block == 0) for length in lengths)
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([of_head] * query.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(
            block_q=of_query,
            block_kv=of_key,
            block_q_dkv=of_query,
            block_kv_dkv=of_key,
            block_q_dq=of_query,
            block_kv_dq=of_key,
        ),
        interpret=interpret,
    )
    heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
    made: Float[Array, "B H S C"] = jax.vmap(kernel)(*heads_first, splash.SegmentIds(*groups) if groups else None)
    return made.swapaxes(1, 2)


def _case(call: AttentionCall, equation: JaxprEqn, places: Places | None, platform: str) -> Case:
    query, key = (jaxprs.shape_of(operand) for operand in equation.invars[:2])
    return Case(
        platform=platform,
        dtype=jaxprs.dtype_of(equation.invars[0]),
        query_shape=query,
        key_shape=key,
        has_bias="bias" in call.operands,
        has_dropout="dropout_key" in call.operands,
        has_groups="query_groups" in call.operands,
        causal=call.causal,
        has_rule=call.has_rule,
        misplaced="the plan does not say where its heads are" if places is None else places.misplaced(key[2]),
    )


def _places(query: NamedSharding | None, key: NamedSharding | None, mesh: Mesh) -> Places | None:
    if mesh.size == 1:
        whole = NamedSharding(mesh, P())
        return Places(query=whole, key=whole)
    return None if query is None or key is None else Places(query=query, key=key)


def _entries(sharding: NamedSharding) -> tuple[tuple[str, ...], ...]:
    """For each of 4 dims the mesh axes, of more than one device, that it is split over."""
    spec = [*sharding.spec, *[None] * (4 - len(sharding.spec))]
    named = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return tuple(tuple(axis for axis in axes if sharding.mesh.shape[axis] > 1) for axes in named)
