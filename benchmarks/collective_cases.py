"""The models of the benchmark of collectives, and how an expert would shard each of them by hand."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.closed_forms import decoder_bytes, stack_bytes
from benchmarks.collective_models import bare_experts_loss, flax_stack, floats, fused_gpt2_loss, fused_gpt2_params
from benchmarks.hand_written import HandWritten
from jaxscale.mesh import MeshSpec
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import decoder_config, gpt_config
from jaxscale.sharding.limits import DEFAULT_LIMITS, Limits
from jaxscale.sharding.trace import LossFunction
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from launch import recipes

NUM_LAYERS = 2
NUM_EXAMPLES, LENGTH = 32, 512
# GPT-2's own vocabulary, 50,257, divides by nothing; this is how Megatron rounds it up.
PADDED_VOCABULARY = 50304
# Experts of Mixtral's width that route groups of this size spend under 5 % of their FLOPs on the dispatch, which every
# device of `tensor` computes.
ROUTED_GROUP = 128
RECIPES = (
    "llama2_7b",
    "llama2_70b",
    "llama3_8b",
    "llama3_70b",
    "llama3_405b",
    "gpt2",
    "gpt3_175b",
    "palm_8b",
    "palm_540b",
    "mixtral_8x7b",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One computation whose collectives are counted: a training step in float32.

    Attributes:
      name: of the case.
      what: it is, in words.
      loss: of (params, batch).
      params: shapes.
      batch: shapes; the leading dim holds the examples.
      optimizer: that updates the parameters.
      by_hand: the ways an expert would shard it on a mesh; the best of them counts.
      closed_form: what the papers' formulas give on a mesh, by axis.
      limits: of the derivation.
    """

    name: str
    what: str
    loss: LossFunction
    params: Any
    batch: Any
    optimizer: optax.GradientTransformation
    by_hand: Callable[[MeshSpec], tuple[HandWritten, ...]]
    closed_form: Callable[[MeshSpec], dict[str, float]]
    limits: Limits = DEFAULT_LIMITS


def case(name: str) -> Case:
    """The case of this name: one of `CASES`."""
    return recipe(name) if name in RECIPES else _OTHERS[name]()


def recipe(name: str) -> Case:
    """A recipe at its own width, cut to two layers, few tokens and float32."""
    job: LanguageModelJob = recipes.load(name)
    config = dataclasses.replace(job.transformer, num_layers=NUM_LAYERS)
    if config.vocab_size % 8:
        config = dataclasses.replace(config, vocab_size=PADDED_VOCABULARY)
    if config.experts is not None:
        config = dataclasses.replace(config, experts=dataclasses.replace(config.experts, group_size=ROUTED_GROUP))
    training = dataclasses.replace(job.training, global_batch_size=NUM_EXAMPLES, grad_accum=1, compute_dtype="float32")
    cut = dataclasses.replace(job, transformer=config, sequence_length=LENGTH, training=training)
    return of_job(name, f"recipe {name}, {NUM_LAYERS} layers", cut)


def decoder(
    *,
    name: str = "decoder",
    what: str = "decoder of width 512, 8 heads, 4 key-value heads",
    d_model: int = 512,
    num_kv_heads: int = 4,
    vocab_size: int = 4096,
    tied_output: bool = False,
    num_examples: int = NUM_EXAMPLES,
    length: int = LENGTH // 2,
) -> Case:
    """A small decoder in Llama's layout, with 8 heads."""
    job = LanguageModelJob(
        transformer=decoder_config(
            num_layers=NUM_LAYERS,
            d_model=d_model,
            num_heads=8,
            num_kv_heads=num_kv_heads,
            d_ff=3 * d_model,
            vocab_size=vocab_size,
            max_positions=length,
            tied_output=tied_output,
        ),
        sequence_length=length,
        training=TrainingIdentity(
            global_batch_size=num_examples, optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant"))
        ),
        operation=Operation(),
    )
    return of_job(name, what, job)


def of_job(name: str, what: str, job: LanguageModelJob) -> Case:
    """A language model of ours."""
    planned, config = job.planned_step(), job.transformer
    num_examples, length = job.training.global_batch_size, job.sequence_length
    return Case(
        name=name,
        what=what,
        loss=planned.loss,
        params=planned.params,
        batch=planned.batch,
        optimizer=planned.optimizer,
        by_hand=lambda mesh: _decoder_by_hand(config, mesh, num_examples, length),
        closed_form=lambda mesh: decoder_bytes(config, mesh, num_examples=num_examples, length=length),
    )


def _decoder_by_hand(c: TransformerConfig, mesh: MeshSpec, b: int, s: int) -> tuple[HandWritten, ...]:
    parts = math.gcd(c.num_kv_heads, mesh.tensor)
    whole = "tensor" if parts == mesh.tensor else "-"
    up, down = ("-, fsdp, tensor", "-, tensor, fsdp") if c.experts is not None else ("fsdp, tensor", "tensor, fsdp")

    def parameters(kv: str) -> dict[str, str]:
        return {
            "token/table": "tensor, fsdp",
            "position/table": "-, fsdp",
            "query/kernel": "fsdp, tensor, -",
            "query/bias": "tensor, -",
            "key/kernel": f"fsdp, {kv}, -",
            "key/bias": f"{kv}, -",
            "value/kernel": f"fsdp, {kv}, -",
            "value/bias": f"{kv}, -",
            "out/kernel": "tensor, -, fsdp",
            "gate/kernel": up,
            "up/kernel": up,
            "up/bias": "tensor",
            "down/kernel": down,
            "mlp/gate": up,
            "mlp/up": up,
            "mlp/down": down,
            "output/kernel": "fsdp, tensor",
        }

    def activations(kv: str) -> dict[tuple[int, ...], str]:
        found = {
            (b, s, c.d_model): "fsdp, -, -",
            (b, s, c.num_kv_heads, c.head_dim): f"fsdp, -, {kv}, -",
            (b, s, c.num_heads, c.head_dim): "fsdp, -, tensor, -",
            (b, s, c.d_ff): "fsdp, -, tensor",
            (b, s, c.vocab_size): "fsdp, -, tensor",
        }
        if c.experts is not None:
            group = min(c.experts.group_size, s)
            routed = (c.experts.num_experts, b, s // group, c.experts.capacity(group))
            found[(*routed, c.d_ff)] = "-, fsdp, -, -, tensor"
            found[(b, s // group, group, c.d_model)] = "fsdp, -, -, -"
        return found

    why = "Megatron over tensor, ZeRO-3 over fsdp" + (
        "" if whole != "-" else f"; {c.num_kv_heads} key-value heads are whole on every device"
    )
    ways = [
        HandWritten(name="specs and constraints", why=why, parameters=parameters(whole), activations=activations(whole))
    ]
    if c.experts is not None:
        group = min(c.experts.group_size, s)
        made = (c.experts.num_experts, b, s // group, c.experts.capacity(group), c.d_model)
        ways.append(
            HandWritten(
                name="what experts make, by its width",
                why=f"{why}; what experts make is scattered over its width",
                parameters=parameters(whole),
                activations=activations(whole) | {made: "-, fsdp, -, -, tensor"},
            )
        )
    if 1 < parts < mesh.tensor:
        kv = f"tensor[1:{parts}]"
        ways.append(
            HandWritten(
                name="heads over a part of the axis",
                why=f"tensor taken apart as {parts} x {mesh.tensor // parts}: the leading part has the key-value heads",
                parameters=parameters(kv),
                activations=activations(kv),
                factors={"tensor": (parts, mesh.tensor // parts)},
            )
        )
    return tuple(ways)


def fused_gpt2(
    *,
    d_model: int = 768,
    num_heads: int = 12,
    vocab_size: int = PADDED_VOCABULARY,
    num_examples: int = NUM_EXAMPLES,
    length: int = LENGTH,
) -> Case:
    """GPT-2 as published, a plain function: queries, keys and values in one matmul, the token table tied."""
    sizes = {"num_layers": NUM_LAYERS, "d_model": d_model, "vocab_size": vocab_size, "num_positions": length}
    head_dim = d_model // num_heads
    tokens = jax.ShapeDtypeStruct((num_examples, length), jnp.int32)
    config = gpt_config(
        num_layers=NUM_LAYERS, d_model=d_model, num_heads=num_heads, vocab_size=vocab_size, max_positions=length
    )
    common = {
        "wte/embedding": "tensor, fsdp",
        "wpe/embedding": "-, fsdp",
        "attn/c_proj/kernel": "tensor, fsdp",
        "c_fc/kernel": "fsdp, tensor",
        "c_fc/bias": "tensor",
        "mlp/c_proj/kernel": "tensor, fsdp",
    }
    activations = {
        (num_examples, length, d_model): "fsdp, -, -",
        (num_examples, length, 4 * d_model): "fsdp, -, tensor",
        (num_examples, length, vocab_size): "fsdp, -, tensor",
        (3, num_examples, length, num_heads, head_dim): "-, fsdp, -, tensor, -",
    }
    ways = (
        HandWritten(
            name="projection written out",
            why="the fused kernel [D, 3 D] is kept as [D, 3, H, C], a change of the model, and split by heads",
            parameters={**common, "c_attn/kernel": "fsdp, -, tensor, -", "c_attn/bias": "-, tensor, -"},
            activations=activations,
            params=fused_gpt2_params(**sizes, qkv=(3, num_heads, head_dim)),
        ),
        HandWritten(
            name="contiguous cut",
            why="the best spec on the kernel as it is: its columns over tensor, across queries, keys and values",
            parameters={**common, "c_attn/kernel": "fsdp, tensor", "c_attn/bias": "tensor"},
            activations=activations,
        ),
        HandWritten(
            name="projection whole",
            why="the fused kernel over fsdp alone: every device computes all queries, keys and values",
            parameters={**common, "c_attn/kernel": "fsdp, -"},
            activations=activations,
        ),
    )
    return Case(
        name="fused_gpt2",
        what="GPT-2 with its fused projection, a plain function",
        loss=fused_gpt2_loss(num_heads),
        params=fused_gpt2_params(**sizes),
        batch={"tokens": tokens, "targets": tokens},
        optimizer=optax.adam(1e-3),
        by_hand=lambda mesh: ways,
        closed_form=lambda mesh: decoder_bytes(config, mesh, num_examples=num_examples, length=length),
    )


def flax_attention(
    *, d_model: int = 1024, num_heads: int = 16, num_examples: int = NUM_EXAMPLES, length: int = LENGTH
) -> Case:
    """Two blocks of Flax's own MultiHeadAttention, whose kernels are [D, H, C], and an MLP."""
    loss, params = flax_stack(num_layers=NUM_LAYERS, d_model=d_model, num_heads=num_heads)
    stream = floats(num_examples, length, d_model)
    parameters = {f"{name}/kernel": "fsdp, tensor, -" for name in ("query", "key", "value")}
    parameters |= {f"{name}/bias": "tensor, -" for name in ("query", "key", "value")}
    parameters |= {"out/kernel": "tensor, -, fsdp", "up/kernel": "fsdp, tensor", "up/bias": "tensor"}
    parameters |= {"down/kernel": "tensor, fsdp"}
    activations = {
        (num_examples, length, d_model): "fsdp, -, -",
        (num_examples, length, num_heads, d_model // num_heads): "fsdp, -, tensor, -",
        (num_examples, length, 4 * d_model): "fsdp, -, tensor",
    }
    why = "Megatron over tensor, heads and never their width; ZeRO-3 over fsdp"
    ways = (
        HandWritten(name="specs and constraints", why=why, parameters=parameters, activations=activations),
        HandWritten(name="specs alone", why=f"{why}; activations are left to XLA", parameters=parameters),
    )
    return Case(
        name="flax_attention",
        what="two blocks of nnx.MultiHeadAttention and an MLP",
        loss=loss,
        params=params,
        batch={"x": stream, "y": stream},
        optimizer=optax.adam(1e-3),
        by_hand=lambda mesh: ways,
        closed_form=lambda mesh: stack_bytes(
            mesh,
            num_layers=NUM_LAYERS,
            num_sums=4,
            num_tokens=num_examples * length,
            d_model=d_model,
            layer_params=12 * d_model**2,
            small_params=6 * d_model + 7 * d_model // mesh.tensor,
        ),
    )


def bare_experts() -> Case:
    """Scanned layers of experts, a plain function, with bare arrays for parameters."""
    d, f, experts, group, capacity = 1024, 4096, 8, 64, 10
    stream = floats(NUM_EXAMPLES, LENGTH // group, group, d)
    leaf = {"router": (d, experts), "up": (experts, d, f), "down": (experts, f, d)}
    parameters = {"up": "-, fsdp, tensor", "down": "-, tensor, fsdp"}
    routed = (experts, NUM_EXAMPLES, LENGTH // group, capacity)
    activations = {stream.shape: "fsdp, -, -, -", (*routed, f): "-, fsdp, -, -, tensor"}
    why = "each expert's hidden dim over tensor, ZeRO-3 over fsdp; what experts make is added up once combined"
    ways = (
        HandWritten(name="specs and constraints", why=why, parameters=parameters, activations=activations),
        HandWritten(name="specs alone", why=f"{why}; activations are left to XLA", parameters=parameters),
        HandWritten(
            name="what experts make, by its width",
            why="what experts make is scattered over its width",
            parameters=parameters,
            activations=activations | {(*routed, d): "-, fsdp, -, -, tensor"},
        ),
    )
    return Case(
        name="bare_experts",
        what="scanned mixture of 8 experts, bare parameters",
        loss=bare_experts_loss(capacity),
        params={name: floats(NUM_LAYERS, *shape) for name, shape in leaf.items()},
        batch={"x": stream, "y": stream},
        optimizer=optax.adam(1e-3),
        by_hand=lambda mesh: ways,
        closed_form=lambda mesh: stack_bytes(
            mesh,
            num_layers=NUM_LAYERS,
            num_sums=2,
            num_tokens=NUM_EXAMPLES * LENGTH,
            d_model=d,
            layer_params=2 * experts * d * f,
            small_params=experts * d,
        ),
    )


_OTHERS: dict[str, Callable[[], Case]] = {
    "decoder": decoder,
    "tied": lambda: decoder(name="tied", what="the decoder, its output tied to its token table", tied_output=True),
    "grouped_heads": lambda: decoder(
        name="grouped_heads", what="the decoder with 2 key-value heads for its 8", num_kv_heads=2
    ),
    "fused_gpt2": fused_gpt2,
    "flax_attention": flax_attention,
    "bare_experts": bare_experts,
}
CASES = (*_OTHERS, *RECIPES)
