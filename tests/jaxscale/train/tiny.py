"""A tiny thing to train: a two-layer network that fits a random linear map. Recipes for the command line, too."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale import typed_json
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.spikes import SpikeConfig
from jaxscale.train.state import host_value

COMPILE_CACHE = "off"
TARGET = np.random.default_rng(7).normal(size=(4,)).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, or slowly, on purpose; not part of what the run is."""

    nan_from_step: int | None = None
    nan_until_step: int = 1 << 30
    batch_s: float = 0.0
    dead_loader_at_step: int | None = None
    evaluate_s: float = 0.0
    # Operations unrolled into the loss, so that XLA has a lot to compile.
    num_extra_ops: int = 0
    export_s: float = 0.0
    # The batch whose loss is a hundred times what it should be, and the process that makes its batches slowly.
    spike_at: int | None = None
    slow_process: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyObjective:
    """Fits `x @ TARGET`; the buckets are lengths of x."""

    identity: dict[str, Any]
    seed: int
    global_batch_size: int
    num_buckets: int = 2
    faults: Faults = Faults()
    starting_params: dict[str, Any] | None = None

    def init_params(self, key):
        first, second = jax.random.split(key)
        return {
            "hidden": {"w": jax.random.normal(first, (4, 8), jnp.float32) * 0.5},
            "out": {"w": jax.random.normal(second, (8,), jnp.float32) * 0.5, "b": jnp.zeros((), jnp.float32)},
        }

    def loss(self, params, batch, key):
        hidden = jnp.tanh(batch["x"] @ params["hidden"]["w"])
        hidden = hidden * jax.random.bernoulli(key, 0.9, hidden.shape).astype(jnp.float32)
        for _ in range(self.faults.num_extra_ops):
            hidden = jnp.sin(hidden) + 1e-3 * jnp.cos(hidden)
        error = hidden @ params["out"]["w"] + params["out"]["b"] - batch["y"]
        loss = jnp.mean(jnp.square(error)) * batch["scale"][0]
        return loss, {"abs_error": jnp.mean(jnp.abs(error))}

    def batch(self, number, rows=slice(None)):
        time.sleep(self.faults.batch_s)
        if self.faults.slow_process == jax.process_index():
            time.sleep(0.4)
        if number == self.faults.dead_loader_at_step:
            raise OSError("the disk of the data is gone")
        rng = np.random.default_rng([self.seed, number])
        x = rng.normal(size=(self.global_batch_size, 2 + number % self.num_buckets, 4)).astype(np.float32)
        first = self.faults.nan_from_step
        bad = first is not None and first <= number < self.faults.nan_until_step
        scale = np.full(self.global_batch_size, np.nan if bad else 1.0, np.float32)
        if number == self.faults.spike_at:
            scale *= 100
        batch = {"x": x, "y": x @ TARGET, "scale": scale}
        return {name: leaf[rows] for name, leaf in batch.items()}

    def batch_shapes(self):
        lengths, size = range(2, 2 + self.num_buckets), self.global_batch_size
        return [
            {
                "x": jax.ShapeDtypeStruct((size, length, 4), np.float32),
                "y": jax.ShapeDtypeStruct((size, length), np.float32),
                "scale": jax.ShapeDtypeStruct((size,), np.float32),
            }
            for length in lengths
        ]

    def evaluate(self, params, mesh):
        time.sleep(self.faults.evaluate_s)
        params = jax.tree.map(host_value, params)
        x = np.random.default_rng(99).normal(size=(64, 4)).astype(np.float32)
        predicted = jnp.tanh(x @ params["hidden"]["w"]) @ params["out"]["w"] + params["out"]["b"]
        return {"error": float(jnp.mean(jnp.square(predicted - x @ TARGET)))}

    def export(self, params, path):
        time.sleep(self.faults.export_s)
        path.mkdir(parents=True, exist_ok=True)
        values = jax.tree.map(lambda leaf: leaf.tolist(), params)
        (path / "model.json").write_text(json.dumps(values, sort_keys=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyJob:
    """The job of fitting the map."""

    training: TrainingIdentity
    operation: Operation
    num_buckets: int = 2
    faults: Faults = Faults()
    start_folder: str = ""

    def check(self, mesh):
        pass

    def starting_from(self, path):
        return dataclasses.replace(self, start_folder=path)

    def objective(self):
        params = None
        if self.start_folder:
            values = json.loads((Path(self.start_folder) / "model.json").read_text())
            params = jax.tree.map(
                lambda leaf: np.asarray(leaf, np.float32), values, is_leaf=lambda leaf: isinstance(leaf, list)
            )
        return TinyObjective(
            identity={
                "training": typed_json.encode(self.training),
                "init": typed_json.fingerprint(values) if self.start_folder else None,
            },
            seed=self.training.seed,
            global_batch_size=self.training.global_batch_size,
            num_buckets=self.num_buckets,
            faults=self.faults,
            starting_params=params,
        )


def job(num_steps=12, num_buckets=1, faults=None, training=None, schedule=None, **operation):
    """A job of the tiny objective; checkpoints every 4 steps, on 1 device or what `mesh` says."""
    schedule = {"kind": "constant", "peak_learning_rate": 0.05, **(schedule or {})}
    identity = {"num_steps": num_steps, "global_batch_size": 16, "max_skipped_in_a_row": 3, **(training or {})}
    operated = {"mesh": "data=1@0", "checkpoint_every_steps": 4, "log_every_steps": 2, "compile_cache": COMPILE_CACHE}
    return TinyJob(
        training=TrainingIdentity(optimizer=AdamWConfig(schedule=ScheduleConfig(**schedule)), **identity),
        operation=Operation(**{**operated, **operation}),
        num_buckets=num_buckets,
        faults=faults or Faults(),
    )


def tiny():
    """Twelve steps on one device."""
    return job(mesh="data=1@0", eval_every_steps=4, best_metric="error", best_mode="min")


def tiny_long():
    """Steps enough to be killed in the midst of, each made slow by its loader."""
    return job(
        num_steps=96,
        num_buckets=2,
        mesh="data=2@0-1",
        faults=Faults(batch_s=0.02),
        training={"grad_accum": 2},
        checkpoint_every_steps=8,
        eval_every_steps=16,
        best_metric="error",
        best_mode="min",
    )


def tiny_of_four():
    """For four processes with a device each: a checkpoint every 4 of 48 steps, and spikes are rolled back from."""
    return job(
        num_steps=48,
        mesh="data=4",
        faults=Faults(batch_s=0.2),
        training={"spikes": SpikeConfig(window=8, threshold=30.0)},
    )
