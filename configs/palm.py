"""Recipes of the PaLM family. To train one, name its text: `--data.datasets DIR`."""

from jaxscale.nn.families import palm_config
from jaxscale.train.adafactor import AdafactorConfig
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import ScheduleConfig

# Section 5, "Optimizer" and "Optimization hyperparameters": Adafactor without factoring, which is Adam with parameter
# scaling; rate 1e-2 for 10,000 steps, then 1 / sqrt(step), which is 1e-2 sqrt(10,000 / step); b1 .9; b2 = 1 - step^-.8;
# the gradient's norm clipped to 1; weights decay by the square of the rate.
_OPTIMIZER = AdafactorConfig(
    schedule=ScheduleConfig(kind="rsqrt", peak_learning_rate=1e-2, decay_steps=10_000),
    b1=0.9,
    decay_exponent=0.8,
    max_grad_norm=1.0,
    weight_decay=True,
    factored=False,
)
# Section 5, "Batch size": 512 sequences (1M tokens) until step 50,000, 1,024 until 115,000, then 2,048.
_BATCH_RAMP = ((0, 512), (50_000, 1024), (115_000, 2048))


def palm_tiny() -> LanguageModelJob:
    """PaLM's layers and training at 1,475,200 parameters, for tests and first tries; up to 2,048 tokens per step.

    Command: jaxscale explain palm_tiny --mesh fsdp=4,tensor=2
    Training: jaxscale train palm_tiny --out runs/palm --data.datasets tokens
    Source: Chowdhery et al. 2022, "PaLM", section 5, https://arxiv.org/abs/2204.02311: optimizer, z-loss, and a ramp of
      the same shape; sizes and steps are ours.
    Count: the closed formula L (D H C 2 + D C 2 + 3 D F + D) + V D + D.
    """
    return LanguageModelJob(
        transformer=palm_config(
            num_layers=4, d_model=128, num_heads=4, head_dim=32, vocab_size=4096, max_positions=256
        ),
        sequence_length=128,
        training=TrainingIdentity(
            num_steps=300, global_batch_size=16, batch_ramp=((0, 8), (100, 16)), optimizer=_OPTIMIZER
        ),
        operation=Operation(checkpoint_every_steps=50),
        z_loss=1e-4,
        remat=False,
    )


def palm_8b() -> LanguageModelJob:
    """PaLM 8B: 8,632,012,800 parameters, parallel layers, one key-value head; 4,194,304 tokens per step.

    Command: jaxscale explain palm_8b --mesh fsdp=64
    Source: Chowdhery et al. 2022, "PaLM", table 1 and section 5, https://arxiv.org/abs/2204.02311. `plan`
      and `explain` take the largest batch of its ramp (1M, 2M, 4M tokens).
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
            batch_ramp=_BATCH_RAMP,
            optimizer=_OPTIMIZER,
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
        z_loss=1e-4,
    )


def palm_540b() -> LanguageModelJob:
    """PaLM 540B: 540,356,474,880 parameters, parallel layers, one key-value head; 4,194,304 tokens per step.

    Command: jaxscale explain palm_540b --mesh slice=2,fsdp=256,tensor=8
    Source: Chowdhery et al. 2022, "PaLM", table 1 and section 5, https://arxiv.org/abs/2204.02311. `plan`
      and `explain` take the largest batch of its ramp (1M, 2M, 4M tokens).
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
            batch_ramp=_BATCH_RAMP,
            optimizer=_OPTIMIZER,
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
        z_loss=1e-4,
    )
