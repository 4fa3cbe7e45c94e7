"""Recipes of the T5 family. To train one, name its text: `--data.datasets DIR`."""

from jaxscale.nn.families import t5_config
from jaxscale.train.adafactor import AdafactorConfig
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig
from jaxscale.train.sequence_to_sequence import SequenceToSequenceJob


def t5_tiny() -> SequenceToSequenceJob:
    """T5 1.1's layout and objective at 1,869,568 parameters, for tests and first tries; 2,528 tokens per step.

    Command: jaxscale explain t5_tiny --mesh fsdp=4,tensor=2
    Training: jaxscale train t5_tiny --out runs/t5 --data.datasets tokens
    Source: as `t5_large`, with Adafactor (rate 1e-2, then 1 / sqrt(step)); sizes and steps are ours. The last ids of
      its vocabulary are left to what stands for spans: tokenizers of up to 4,096 tokens suit it.
    Count: the closed formula, see `t5_large`.
    """
    return SequenceToSequenceJob(
        transformer=t5_config(
            num_layers=2, d_model=128, num_heads=4, head_dim=32, d_ff=256, vocab_size=4224, max_positions=128
        ),
        source_length=128,
        target_length=30,
        training=TrainingIdentity(
            num_steps=300,
            global_batch_size=16,
            # Section 3.1.2: 1 / sqrt(max(step, 10,000)), which is 1e-2 at first.
            optimizer=AdafactorConfig(
                schedule=ScheduleConfig(kind="rsqrt", peak_learning_rate=1e-2, decay_steps=10_000)
            ),
        ),
        operation=Operation(checkpoint_every_steps=50),
        remat=False,
    )


def t5_large() -> SequenceToSequenceJob:
    """T5 1.1 large: 783,150,080 parameters, an encoder and a decoder; 1,282,048 tokens per step.

    Command: jaxscale explain t5_large --mesh fsdp=8,tensor=2
    Source: Raffel et al. 2019, "Exploring the limits of transfer learning", sections 2.1 and 3.1.4,
      https://arxiv.org/abs/1910.10683 (512 tokens read, 114 of spans to predict, 2,048 sequences); the sizes are of
      version 1.1, `models/t5.1.1.large.gin` of https://github.com/google-research/text-to-text-transfer-transformer.
      Adam stands for Adafactor.
    Count: of the published checkpoint, `google/t5-v1_1-large`.
    """
    return SequenceToSequenceJob(
        transformer=t5_config(
            num_layers=24, d_model=1024, num_heads=16, head_dim=64, d_ff=2816, vocab_size=32128, max_positions=512
        ),
        source_length=512,
        target_length=114,
        training=TrainingIdentity(
            num_steps=1_000_000,
            global_batch_size=2048,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(kind="constant", peak_learning_rate=1e-3, warmup_steps=10000)
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )
