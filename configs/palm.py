"""Recipes of the PaLM family. To train one, name its text: `--data.datasets DIR`."""

from jaxscale.nn.families import palm_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def palm_8b() -> LanguageModelJob:
    """PaLM 8B: 8,632,012,800 parameters, parallel layers, one key-value head; 4,194,304 tokens per step.

    Command: jaxscale explain palm_8b --mesh fsdp=64
    Source: Chowdhery et al. 2022, "PaLM", table 1 and section 5, https://arxiv.org/abs/2204.02311. The batch is the
      largest of its schedule (1M, 2M, 4M tokens); Adam, and a learning rate for it, stand for Adafactor.
    Count: the closed formula L (D H C 2 + D C 2 + 3 D F + D) + V D + D; the paper says 8.63B.
    """
    return LanguageModelJob(
        transformer=palm_config(
            num_layers=32, d_model=4096, num_heads=16, head_dim=256, vocab_size=256_000, max_positions=2048
        ),
        sequence_length=2048,
        training=TrainingIdentity(
            num_steps=255_000,
            global_batch_size=2048,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=1e-4, final_learning_rate=1e-5, warmup_steps=10000, decay_steps=255_000
                ),
                b2=0.99,
                weight_decay=1e-4,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
        z_loss=1e-4,
    )


def palm_540b() -> LanguageModelJob:
    """PaLM 540B: 540,356,474,880 parameters, parallel layers, one key-value head; 4,194,304 tokens per step.

    Command: jaxscale explain palm_540b --mesh slice=2,fsdp=256,tensor=8
    Source: Chowdhery et al. 2022, "PaLM", table 1 and section 5, https://arxiv.org/abs/2204.02311. The batch is the
      largest of its schedule (1M, 2M, 4M tokens); Adam, and a learning rate for it, stand for Adafactor.
    Count: the closed formula L (D H C 2 + D C 2 + 3 D F + D) + V D + D; the paper says 540.35B.
    """
    return LanguageModelJob(
        transformer=palm_config(
            num_layers=118, d_model=18432, num_heads=48, head_dim=256, vocab_size=256_000, max_positions=2048
        ),
        sequence_length=2048,
        training=TrainingIdentity(
            num_steps=255_000,
            global_batch_size=2048,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=1e-4, final_learning_rate=1e-5, warmup_steps=10000, decay_steps=255_000
                ),
                b2=0.99,
                weight_decay=1e-4,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
        z_loss=1e-4,
    )
