"""Recipes of the GPT family. To train one, name its text: `--data.datasets DIR`."""

from jaxscale.nn.families import gpt_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def gpt2_12m() -> LanguageModelJob:
    """A GPT-2 for one workstation: 13,258,752 parameters, 4,096 tokens per step; benchmarks/train_step.py times it.

    Command: jaxscale explain gpt2_12m --mesh fsdp=8
    Training: jaxscale train gpt2_12m --out runs/gpt --data.datasets tokens
    Source: the layout of Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3;
      sizes, rate and batch are ours.
    Count: 12 L D^2 + 13 L D + (V + P) D + 2 D.
    """
    return LanguageModelJob(
        transformer=gpt_config(num_layers=6, d_model=256, num_heads=4, vocab_size=32768, max_positions=512),
        sequence_length=512,
        training=TrainingIdentity(
            num_steps=2000,
            global_batch_size=8,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=100, decay_steps=2000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=200, eval_every_steps=200),
        remat=False,
        loss_chunk_tokens=512,
    )


def gpt2() -> LanguageModelJob:
    """GPT-2, its smallest: 124,439,808 parameters; 524,288 tokens per step.

    Command: jaxscale explain gpt2 --mesh data=8
    Source: Radford et al. 2019, "Language models are unsupervised multitask learners", table 2 and section 2.3 (there
      the count is given as 117M). Steps and learning rate are ours: the paper tells neither.
    Count: of the published checkpoint, `openai-community/gpt2`.
    """
    return LanguageModelJob(
        transformer=gpt_config(
            num_layers=12, d_model=768, num_heads=12, vocab_size=50257, max_positions=1024, dropout_rate=0.1
        ),
        sequence_length=1024,
        training=TrainingIdentity(
            num_steps=300_000,
            global_batch_size=512,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=6e-4, final_learning_rate=6e-5, warmup_steps=2000, decay_steps=300_000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )


def gpt3_175b() -> LanguageModelJob:
    """GPT-3 175B: 174,604,259,328 parameters; 3,145,728 tokens per step.

    Command: jaxscale explain gpt3_175b --mesh fsdp=64,tensor=8
    Source: Brown et al. 2020, "Language models are few-shot learners", tables 2.1 and 2.2 and appendix B,
      https://arxiv.org/abs/2005.14165. Every layer's attention is dense here; the paper's alternate with banded ones.
    Count: the closed formula 12 L D^2 + 13 L D + (V + P) D + 2 D; the paper says 175.0B.
    """
    return LanguageModelJob(
        transformer=gpt_config(num_layers=96, d_model=12288, num_heads=96, vocab_size=50257, max_positions=2048),
        sequence_length=2048,
        training=TrainingIdentity(
            num_steps=95_367,
            global_batch_size=1536,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=6e-5, final_learning_rate=6e-6, warmup_steps=119, decay_steps=95_367
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )
