"""Recipes small enough to compile in a test, named as `path/to/this_file.py:function`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.data.text_data import TextData
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.planned_step import PlannedStep


def tiny_decoder() -> LanguageModelJob:
    """2 layers, 64 wide."""
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=2, d_model=64, num_heads=4, num_kv_heads=4, d_ff=128, vocab_size=256, max_positions=32
        ),
        sequence_length=32,
        training=TrainingIdentity(
            num_steps=10,
            global_batch_size=16,
            optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant")),
        ),
        operation=Operation(mesh="fsdp=4,tensor=2"),
    )


def long_decoder() -> LanguageModelJob:
    """A layer whose scores of attention, 2,048 by 2,048 for each of 4 heads, are larger than all else."""
    job = tiny_decoder()
    return dataclasses.replace(
        job,
        transformer=decoder_config(
            num_layers=1,
            d_model=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=128,
            d_ff=256,
            vocab_size=256,
            max_positions=2048,
        ),
        sequence_length=2048,
        training=dataclasses.replace(job.training, global_batch_size=32, compute_dtype="bfloat16"),
    )


def long_packed_decoder() -> LanguageModelJob:
    """The same, of rows that hold several documents."""
    return dataclasses.replace(long_decoder(), data=TextData(datasets=("tokens",)))


def far_too_large() -> LanguageModelJob:
    """A decoder of 9 layers whose state alone is more than 8 chips of 16 GB hold."""
    job = tiny_decoder()
    return dataclasses.replace(
        job,
        transformer=decoder_config(
            num_layers=9, d_model=8192, num_heads=64, num_kv_heads=64, d_ff=65536, vocab_size=512, max_positions=32
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReshardedJob:
    """A step in which an array of 32 MiB goes from one sharding to another that XLA knows no way to."""

    training: TrainingIdentity
    operation: Operation

    def planned_step(self) -> PlannedStep:
        mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))
        before, after = (NamedSharding(mesh, P(*axes)) for axes in (("data", "tensor"), (None, mesh.axis_names[::-1])))

        def loss(params, batch):
            made = jnp.tanh(batch["x"] @ params["up"]) @ params["down"]
            wide = made[:, :1] * jnp.arange(2**19, dtype=jnp.float32)[None, :]
            first = jax.lax.with_sharding_constraint(jnp.sin(wide), before)
            return jnp.mean(jax.lax.with_sharding_constraint(jnp.cos(first), after))

        return PlannedStep(
            loss=loss,
            params={name: jax.ShapeDtypeStruct((64, 64), jnp.float32) for name in ("up", "down")},
            batch={"x": jax.ShapeDtypeStruct((16, 64), jnp.float32)},
            optimizer=self.training.optimizer.transformation(),
            num_tokens=16,
        )


def resharded() -> ReshardedJob:
    job = tiny_decoder()
    return ReshardedJob(training=job.training, operation=Operation(mesh="data=2,fsdp=2,tensor=2"))


class BareJob:
    """A step, and nothing of how it is trained."""

    def planned_step(self) -> PlannedStep:
        return tiny_decoder().planned_step()


def bare() -> BareJob:
    return BareJob()


def nothing_to_plan() -> str:
    return "no job"


def small_llama() -> LanguageModelJob:
    """4 layers, 512 wide, in bfloat16; 4 microbatches."""
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=4, d_model=512, num_heads=8, num_kv_heads=8, d_ff=1536, vocab_size=4096, max_positions=128
        ),
        sequence_length=128,
        training=TrainingIdentity(
            num_steps=10,
            global_batch_size=64,
            grad_accum=4,
            compute_dtype="bfloat16",
            optimizer=AdamWConfig(schedule=ScheduleConfig(kind="constant")),
        ),
        operation=Operation(mesh="fsdp=8"),
    )
