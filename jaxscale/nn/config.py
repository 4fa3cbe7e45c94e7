"""What fixes a Transformer: its sizes and the choices that families of models make differently."""

import dataclasses
import math
import typing
from typing import Literal

from jaxscale import typed_json
from jaxscale.errors import UsageError

# What of a layer the backward pass computes again: nothing (False), everything but the layer's input (True), or
# everything but that and the results of matmuls with weights ("matmuls"), which keeps more and computes less again.
Remat = Literal[False, True, "matmuls"]

# Rows of a table of relative positions, as T5 has in all its sizes.
NUM_RELATIVE_BUCKETS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary positions stretched to a longer context: long wavelengths are divided by `factor`, short ones kept.

    Attributes:
      factor: how many times longer the context is.
      low_frequency_factor: wavelengths above original_max_positions / this are stretched whole.
      high_frequency_factor: wavelengths below original_max_positions / this are kept; between, it is interpolated.
      original_max_positions: the context that the model was first trained on, in tokens.

    Reference: Llama 3.1, `apply_scaling` in https://github.com/meta-llama/llama-models
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        if not self.factor >= 1.0:
            raise UsageError(f"factor={self.factor} must be at least 1")
        if not 0.0 < self.low_frequency_factor < self.high_frequency_factor:
            raise UsageError(
                f"low_frequency_factor={self.low_frequency_factor} must be above 0 and below "
                f"high_frequency_factor={self.high_frequency_factor}"
            )
        if self.original_max_positions < 1:
            raise UsageError(f"original_max_positions={self.original_max_positions} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A layer's MLP as one of several, chosen token by token.

    Attributes:
      num_experts: E.
      num_experts_per_token: how many of them read a token.
      capacity_factor: an expert reads at most this times its even share of a group's tokens; the rest pass it by.
        At num_experts / num_experts_per_token none ever does. None for experts that read all that they are sent
        (dropless), at the FLOPs of what is read; see `jaxscale.nn.dropless`.
      group_size: tokens of one sequence that share the experts' capacity, where the sequence is longer. Dispatching
        costs FLOPs in proportion to it, and small groups drop more. None where there is no capacity.
    """

    num_experts: int
    num_experts_per_token: int
    capacity_factor: float | None
    group_size: int | None

    def __post_init__(self) -> None:
        if not 1 <= self.num_experts_per_token <= self.num_experts:
            raise UsageError(
                f"num_experts_per_token={self.num_experts_per_token} must be between 1 and "
                f"num_experts={self.num_experts}"
            )
        if (self.capacity_factor is None) != (self.group_size is None):
            raise UsageError(
                f"capacity_factor={self.capacity_factor} and group_size={self.group_size} belong together; None for "
                "both makes experts that read all that they are sent"
            )
        if self.capacity_factor is not None and not self.capacity_factor > 0.0:
            raise UsageError(f"capacity_factor={self.capacity_factor} must be above 0; 1.25 is usual")
        if self.group_size is not None and self.group_size < 1:
            raise UsageError(f"group_size={self.group_size} must be at least 1")

    def capacity(self, num_tokens: int) -> int:
        """How many tokens of a group of `num_tokens` each expert reads at most.

        >>> config = ExpertsConfig(num_experts=8, num_experts_per_token=2, capacity_factor=1.25, group_size=512)
        >>> config.capacity(512)
        160
        """
        if self.capacity_factor is None:
            return num_tokens
        share = num_tokens * self.num_experts_per_token / self.num_experts
        return min(math.ceil(share * self.capacity_factor), num_tokens)


# The linear maps of a layer, by what they do; `mlp` is all of the MLP's.
MapRole = Literal["query", "key", "value", "out", "mlp"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Linear maps whose weights W stay as they are, beside which a product of two narrow ones learns.

    y = x W + alpha / rank (x A) B, with A [in, rank] drawn and B [rank, out] zero at first.

    Attributes:
      rank: how narrow.
      alpha: over the rank, the scale of what is added.
      targets: which maps of every layer.

    Reference: Hu et al. 2021, "LoRA", section 4.1, https://arxiv.org/abs/2106.09685
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[MapRole, ...] = ("query", "key", "value", "out", "mlp")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"lora.rank={self.rank} must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"lora.alpha={self.alpha} must be a finite number above 0; twice the rank is usual")
        roles = typing.get_args(MapRole)
        unknown = [target for target in self.targets if target not in roles]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise UsageError(f"lora.targets={self.targets} must be some of {', '.join(roles)}, each once")

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied with."""
        return self.alpha / self.rank

    def of(self, role: MapRole) -> "LoRAConfig | None":
        """The configuration for the maps of one role; None where they have no factors."""
        return self if role in self.targets else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that fixes a Transformer's parameters and its function of them.

    `jaxscale.nn.families` fills in the usual layouts.

    Attributes:
      kind: an encoder reads both ways; a decoder reads to the left and has an output over the vocabulary.
      num_layers: L.
      d_model: D.
      num_heads: H, query heads.
      num_kv_heads: K, key-value heads; divides H.
      head_dim: C.
      d_ff: F.
      vocab_size: V.
      max_positions: the longest sequence in tokens.
      type_vocab_size: rows of the token type table; 0 for none.
      positions: a table of learned rows, rotary, or a learned bias of every head by distance ("relative").
      rope_base: of rotary positions; not used by others.
      rope_scaling: of rotary positions, to a longer context; None for none.
      scaled_scores: whether attention scores are divided by sqrt(C).
      norm: which norm.
      norm_epsilon: added under its root.
      norm_placement: "post" as BERT (after each addition, and after the embeddings), "pre" as Llama (before each part,
        and once at the end).
      parallel: whether attention and MLP read one norm of the layer's input, and are added to it together (PaLM).
      activation: of the MLP; "gelu" is the exact one.
      gated: whether the MLP has a gate ("silu" and a gate is SwiGLU).
      experts: of the MLP; None for one MLP that reads every token.
      use_bias: whether linear maps and LayerNorms have biases.
      tied_output: whether a decoder's output is the token table; an encoder has no output.
      dropout_rate: of embeddings, attention weights and each part's output; used only where a key is passed.
      initial_stddev: of the weights drawn at first.
      initial_fan_in: whether weights that contract n numbers are drawn with standard deviation 1 / sqrt(n) instead, and
        no smaller where they write into the residual stream (PaLM).
      initial_token_stddev: of the first token table; None for `initial_stddev`.
      scaled_logits: whether scores of tokens are divided by sqrt(D) (PaLM, and T5 where its output is tied).
      qkv_bias: whether query, key and value have biases where other linear maps have none (Qwen2).
      headless: whether a decoder has no output: its hidden states are all that it gives (a model that embeds texts).
      lora: narrow factors beside the layers' linear maps; None for none. `jaxscale.nn.lora` merges them.
    """

    kind: Literal["encoder", "decoder"]
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    positions: Literal["learned", "rope", "relative"]
    rope_base: float
    rope_scaling: RopeScaling | None
    scaled_scores: bool
    norm: Literal["layernorm", "rmsnorm"]
    norm_epsilon: float
    norm_placement: Literal["pre", "post"]
    parallel: bool
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"]
    gated: bool
    experts: ExpertsConfig | None
    use_bias: bool
    tied_output: bool
    dropout_rate: float
    initial_stddev: float
    initial_fan_in: bool = typed_json.added(False)
    initial_token_stddev: float | None = typed_json.added(None)
    scaled_logits: bool = typed_json.added(False)
    qkv_bias: bool = typed_json.added(False)
    headless: bool = typed_json.added(False)
    lora: LoRAConfig | None = typed_json.added(None)  # noqa: RUF009 (a field of a frozen class)

    def __post_init__(self) -> None:
        for name in ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UsageError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise UsageError(f"head_dim={self.head_dim} must be even for positions='rope', which turns pairs")
        if self.max_positions < 1:
            raise UsageError(f"max_positions={self.max_positions} must be at least 1")
        if self.rope_scaling is not None and self.positions != "rope":
            raise UsageError(f"rope_scaling is given, but positions={self.positions!r} are not rotary; use 'rope'")
        if self.parallel and self.norm_placement == "post":
            raise UsageError("parallel=True needs norm_placement='pre': both parts read one norm of the input")
        if self.experts is not None and self.use_bias:
            raise UsageError("use_bias=True: experts have no biases; use_bias=False does")
        if self.qkv_bias and self.use_bias:
            raise UsageError("qkv_bias=True: with use_bias=True all linear maps have biases already; set one of them")
        if self.lora is not None and self.experts is not None and "mlp" in self.lora.targets:
            raise UsageError("lora.targets has 'mlp', but experts take no factors; leave it out")
        if self.headless and (self.kind != "decoder" or self.tied_output):
            raise UsageError(
                f"headless=True is of a decoder without an output, got kind={self.kind!r} and "
                f"tied_output={self.tied_output}; an encoder has none anyway"
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UsageError(f"dropout_rate={self.dropout_rate} must be in [0, 1)")

    def stddev_of(self, num_contracted: int) -> float:
        """The standard deviation that weights which contract so many numbers are first drawn with."""
        return 1 / math.sqrt(num_contracted) if self.initial_fan_in else self.initial_stddev

    @property
    def token_stddev(self) -> float:
        """The standard deviation that the token table is first drawn with."""
        return self.initial_stddev if self.initial_token_stddev is None else self.initial_token_stddev

    @property
    def num_params(self) -> int:
        """How many numbers the model learns."""
        num_embedded = self.vocab_size + self.type_vocab_size
        num_embedded += self.max_positions if self.positions == "learned" else 0
        has_output = self.kind == "decoder" and not (self.tied_output or self.headless)
        return (
            num_embedded * self.d_model
            + (NUM_RELATIVE_BUCKETS * self.num_heads if self.positions == "relative" else 0)
            + self.num_layers * (self._num_attention_params + self._num_mlp_params + self._num_factor_params)
            + (self.num_layers * (1 if self.parallel else 2) + 1) * self._num_norm_params
            + (self.vocab_size * self.d_model if has_output else 0)
        )

    @property
    def _num_attention_params(self) -> int:
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = query + 2 * key if self.use_bias or self.qkv_bias else 0
        biases += self.d_model if self.use_bias else 0
        return 2 * self.d_model * (query + key) + biases

    @property
    def _num_mlp_params(self) -> int:
        num_in = 2 if self.gated else 1
        biases = num_in * self.d_ff + self.d_model if self.use_bias else 0
        one = (num_in + 1) * self.d_model * self.d_ff + biases
        return one if self.experts is None else self.experts.num_experts * (one + self.d_model)

    @property
    def _num_factor_params(self) -> int:
        if self.lora is None:
            return 0
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        num_maps = 3 if self.gated else 2
        widths: dict[MapRole, int] = {
            "query": self.d_model + query,
            "key": self.d_model + key,
            "value": self.d_model + key,
            "out": query + self.d_model,
            "mlp": num_maps * (self.d_model + self.d_ff),
        }
        return self.lora.rank * sum(widths[target] for target in self.lora.targets)

    @property
    def _num_norm_params(self) -> int:
        return self.d_model * (2 if self.norm == "layernorm" and self.use_bias else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """An encoder, and a decoder that reads what it made; both look tokens up in one table.

    Attributes:
      encoder: its layers; reads the source both ways.
      decoder: its layers, each with one more attention, over the encoder's output. `tied_output` is its own.
    """

    encoder: TransformerConfig
    decoder: TransformerConfig

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            kind = getattr(self, name).kind
            if kind != name:
                raise UsageError(f"{name}.kind={kind!r} must be {name!r}")
        for name in ("d_model", "vocab_size"):
            ours, theirs = getattr(self.encoder, name), getattr(self.decoder, name)
            if ours != theirs:
                raise UsageError(f"encoder.{name}={ours} must be decoder.{name}={theirs}")
        for name in ("encoder", "decoder"):
            config: TransformerConfig = getattr(self, name)
            if config.positions == "learned" or config.type_vocab_size:
                raise UsageError(f"{name}: tables of positions and token types are not shared; use neither")
            if config.norm_placement != "pre" or config.parallel:
                raise UsageError(f"{name}: layers must be norm_placement='pre' and not parallel")

    @property
    def max_positions(self) -> int:
        """The longest source in tokens."""
        return self.encoder.max_positions

    @property
    def num_params(self) -> int:
        """How many numbers the model learns."""
        shared_table = self.encoder.vocab_size * self.encoder.d_model
        crossings = self.decoder._num_attention_params + self.decoder._num_norm_params
        return self.encoder.num_params + self.decoder.num_params - shared_table + self.decoder.num_layers * crossings
