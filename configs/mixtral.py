"""Recipes of the Mixtral family. To train one, name its text: `--data.datasets DIR`."""

import dataclasses

from jaxscale.nn.config import ExpertsConfig
from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def mixtral_tiny() -> LanguageModelJob:
    """Mixtral's layout at 1,934,976 parameters, 4 experts of which 2 read a token; 2,048 tokens per step.

    Command: jaxscale explain mixtral_tiny --mesh fsdp=2,expert=4
    Training: jaxscale train mixtral_tiny --out runs/mixtral --data.datasets tokens
    Source: as `mixtral_8x7b`; all sizes are ours.
    Count: the closed formula L (2 D H C + 2 D K C + E (3 D F + D) + 2 D) + 2 V D + D.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=2,
            d_model=128,
            num_heads=4,
            num_kv_heads=2,
            d_ff=256,
            vocab_size=4096,
            max_positions=256,
            rope_base=1e6,
            experts=ExpertsConfig(num_experts=4, num_experts_per_token=2, capacity_factor=1.25, group_size=128),
            tied_output=False,
        ),
        sequence_length=128,
        training=TrainingIdentity(
            num_steps=300,
            global_batch_size=16,
            optimizer=AdamWConfig(schedule=ScheduleConfig(peak_learning_rate=3e-3, warmup_steps=20, decay_steps=300)),
        ),
        operation=Operation(checkpoint_every_steps=50),
        load_balance_loss=0.01,
        router_z_loss=0.001,
        remat=False,
    )


def mixtral_8x7b() -> LanguageModelJob:
    """Mixtral 8x7B: 46,702,792,704 parameters, 8 experts of which 2 read a token; 4,194,304 tokens per step.

    Command: jaxscale explain mixtral_8x7b --mesh fsdp=16,expert=8
    Source: Jiang et al. 2024, "Mixtral of experts", table 1 and section 2, https://arxiv.org/abs/2401.04088.
    Count: of the published checkpoint, `mistralai/Mixtral-8x7B-v0.1`. The paper drops no tokens and tells nothing of
      its training: capacity, loss weights, batch, steps, and sequences of 4,096 tokens (of 32,768) are ours.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=32,
            d_model=4096,
            num_heads=32,
            num_kv_heads=8,
            d_ff=14336,
            vocab_size=32000,
            max_positions=32768,
            rope_base=1e6,
            experts=ExpertsConfig(num_experts=8, num_experts_per_token=2, capacity_factor=1.25, group_size=512),
            tied_output=False,
        ),
        sequence_length=4096,
        training=TrainingIdentity(
            num_steps=500_000,
            global_batch_size=1024,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=3e-4, final_learning_rate=3e-5, warmup_steps=2000, decay_steps=500_000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
        load_balance_loss=0.01,
        router_z_loss=0.001,
    )


def mixtral_tiny_dropless() -> LanguageModelJob:
    """`mixtral_tiny` with experts that read all they are sent: 1,934,976 parameters; 2,048 tokens per step.

    Command: jaxscale explain mixtral_tiny_dropless --mesh data=2,fsdp=2,tensor=2
    Training: jaxscale train mixtral_tiny_dropless --out runs/mixtral --data.datasets tokens
    Source: as `mixtral_tiny`.
    Count: as `mixtral_tiny`.
    """
    return _dropless(mixtral_tiny())


def mixtral_8x7b_dropless() -> LanguageModelJob:
    """Mixtral 8x7B with experts that read all they are sent: 46,702,792,704 parameters; 4,194,304 tokens per step.

    Command: jaxscale explain mixtral_8x7b_dropless --mesh fsdp=16,expert=8
    Source: as `mixtral_8x7b`; like the paper's, these experts drop no tokens.
    Count: as `mixtral_8x7b`.
    """
    return _dropless(mixtral_8x7b())


def _dropless(job: LanguageModelJob) -> LanguageModelJob:
    """The job with experts that have no capacity."""
    transformer = job.transformer
    if transformer.experts is not None:
        experts = dataclasses.replace(transformer.experts, capacity_factor=None, group_size=None)
        transformer = dataclasses.replace(transformer, experts=experts)
    return dataclasses.replace(job, transformer=transformer)
