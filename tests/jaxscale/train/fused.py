"""A tiny thing to train whose attention makes queries, keys and values by one matmul, as GPT-2's does."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig

# Kernels are of 64 KiB and more, which are split over `fsdp` too.
WIDTH, HEADS, HIDDEN, LAYERS = 64, 4, 256, 2
BATCH_SIZE, LENGTHS = 8, (6, 4)


def dot(x, weights):
    return jnp.dot(x, weights["kernel"], precision="highest") + weights["bias"][None, None]


def norm(x):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def attend(q, k, v):
    q, k, v = (x.reshape(*x.shape[:2], HEADS, WIDTH // HEADS) for x in (q, k, v))
    # Not a softmax, on which a bias of all keys has no effect: its gradient is rounding, which Adam would blow up.
    weights = jax.nn.sigmoid(jnp.einsum("bshc,bthc->bhst", q, k, precision="highest") / 4.0)
    mixed = jnp.einsum("bhst,bthc->bshc", weights, v, precision="highest")
    return mixed.reshape(*mixed.shape[:2], WIDTH)


def layer(x, weights):
    x = x + dot(attend(*jnp.split(dot(norm(x), weights["attention"]), 3, axis=-1)), weights["out"])
    return x + dot(jax.nn.gelu(dot(norm(x), weights["up"])), weights["down"]), None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedObjective:
    """Shifts a sequence by one; the buckets are lengths."""

    identity: dict[str, Any]
    exported: list[Any] = dataclasses.field(default_factory=list)
    evaluated: list[Any] = dataclasses.field(default_factory=list)
    starting_params: Any = None

    def init_params(self, key):
        shapes = {
            "attention": (WIDTH, 3 * WIDTH),
            "out": (WIDTH, WIDTH),
            "up": (WIDTH, HIDDEN),
            "down": (HIDDEN, WIDTH),
        }
        return {
            name: {
                "kernel": 0.1 * jax.random.normal(jax.random.fold_in(key, i), (LAYERS, *shape), jnp.float32),
                "bias": 0.1 * jax.random.normal(jax.random.fold_in(key, 9 + i), (LAYERS, shape[1]), jnp.float32),
            }
            for i, (name, shape) in enumerate(shapes.items())
        }

    def loss(self, params, batch, key):
        kept = jax.random.bernoulli(key, 0.9, batch["x"].shape).astype(jnp.float32)
        made = jax.lax.scan(jax.checkpoint(layer), batch["x"] * kept, params)[0]
        return jnp.mean(jnp.square(made - jnp.roll(batch["x"], 1, axis=1))), {"size": jnp.mean(jnp.abs(made))}

    def batch_shapes(self):
        return [{"x": jax.ShapeDtypeStruct((BATCH_SIZE, length, WIDTH), np.float32)} for length in LENGTHS]

    def batch(self, number, rows=slice(None)):
        shape = (BATCH_SIZE, LENGTHS[number % len(LENGTHS)], WIDTH)
        return {"x": np.random.default_rng(number).normal(size=shape).astype(np.float32)[rows]}

    def evaluate(self, params, mesh):
        self.evaluated.append(jax.device_get(params))
        return {"minus_number": -float(len(self.evaluated))}

    def export(self, params, path):
        path.mkdir(parents=True, exist_ok=True)
        self.exported.append(params)


def training(num_steps, **changes):
    """Three optimizer steps at most, with moments that are stored as their parameters are."""
    schedule = ScheduleConfig(kind="constant", peak_learning_rate=1e-3)
    return TrainingIdentity(
        num_steps=num_steps, global_batch_size=BATCH_SIZE, optimizer=AdamWConfig(schedule=schedule), **changes
    )


def operation(mesh):
    """A checkpoint and a dev metric after every step, of which the first is taken to be the best."""
    return Operation(
        mesh=mesh,
        checkpoint_every_steps=1,
        keep_last=9,
        log_every_steps=1,
        eval_every_steps=1,
        best_metric="minus_number",
        compile_cache="off",
    )
