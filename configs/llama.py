"""Recipes of the Llama family. To train one, name its text: `--data.datasets DIR`."""

from jaxscale.nn.config import RopeScaling
from jaxscale.nn.families import decoder_config
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.language_model import LanguageModelJob
from jaxscale.train.optimizer import AdamWConfig, ScheduleConfig


def llama_10m() -> LanguageModelJob:
    """A Llama for one workstation: 9,703,680 parameters, 2 key-value heads for 4; 8,192 tokens per step.

    Command: jaxscale explain llama_10m --mesh fsdp=4,tensor=2
    Training: jaxscale train llama_10m --out runs/lm --data.datasets tokens
    Source: the layout of Touvron et al. 2023, https://arxiv.org/abs/2302.13971; sizes, rate and batch are ours,
      for half an hour on 2 cores.
    Time, expected: 450 steps (with decay_steps=450, warmup_steps=60) on 99 MB of novels, proposals and documentation,
      with a tokenizer of their own: 23 minutes; held-out text takes 1.86 bits per byte, 3.68 before.
    Count: V D + L (2 D (H + K) C + 3 D F + 2 D) + D.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=8,
            d_model=256,
            num_heads=4,
            num_kv_heads=2,
            d_ff=640,
            vocab_size=16384,
            max_positions=512,
        ),
        sequence_length=512,
        training=TrainingIdentity(
            num_steps=1000,
            global_batch_size=16,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=3e-3, final_learning_rate=3e-4, warmup_steps=100, decay_steps=1000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(checkpoint_every_steps=200, eval_every_steps=200),
        remat=False,
        loss_chunk_tokens=1024,
    )


def llama2_7b() -> LanguageModelJob:
    """Llama 2 7B: 6,738,415,616 parameters; 4,194,304 tokens per step.

    Command: jaxscale explain llama2_7b --mesh fsdp=64,tensor=4
    Source: Touvron et al. 2023, "Llama 2", table 1 and section 2.2, https://arxiv.org/abs/2307.09288; the widths are
      those of Llama 1 7B, table 2 of https://arxiv.org/abs/2302.13971.
    Count: of the published checkpoint, `meta-llama/Llama-2-7b-hf`.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=32,
            d_model=4096,
            num_heads=32,
            num_kv_heads=32,
            d_ff=11008,
            vocab_size=32000,
            max_positions=4096,
            tied_output=False,
        ),
        sequence_length=4096,
        training=TrainingIdentity(
            num_steps=476_837,
            global_batch_size=1024,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=3e-4, final_learning_rate=3e-5, warmup_steps=2000, decay_steps=476_837
                ),
                b2=0.95,
                eps=1e-5,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )


def llama2_70b() -> LanguageModelJob:
    """Llama 2 70B: 68,976,648,192 parameters, 8 key-value heads for 64; 4,194,304 tokens per step.

    Command: jaxscale explain llama2_70b --mesh fsdp=32,tensor=4
    Source: Touvron et al. 2023, "Llama 2", table 1, sections 2.2 and A.2.1, https://arxiv.org/abs/2307.09288.
    Count: of the published checkpoint, `meta-llama/Llama-2-70b-hf`.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=80,
            d_model=8192,
            num_heads=64,
            num_kv_heads=8,
            d_ff=28672,
            vocab_size=32000,
            max_positions=4096,
            tied_output=False,
        ),
        sequence_length=4096,
        training=TrainingIdentity(
            num_steps=476_837,
            global_batch_size=1024,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=1.5e-4, final_learning_rate=1.5e-5, warmup_steps=2000, decay_steps=476_837
                ),
                b2=0.95,
                eps=1e-5,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )


def llama3_8b() -> LanguageModelJob:
    """Llama 3 8B: 8,030,261,248 parameters; 8,388,608 tokens per step.

    Command: jaxscale explain llama3_8b --mesh fsdp=64,tensor=4
    Source: Grattafiori et al. 2024, "The Llama 3 herd of models", table 3, https://arxiv.org/abs/2407.21783.
    Count: of the published checkpoint, `meta-llama/Meta-Llama-3-8B`. The batch and the steps are ours: the paper
      tells those of the 405B model alone.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=32,
            d_model=4096,
            num_heads=32,
            num_kv_heads=8,
            d_ff=14336,
            vocab_size=128256,
            max_positions=8192,
            rope_base=500_000.0,
            tied_output=False,
        ),
        sequence_length=8192,
        training=TrainingIdentity(
            num_steps=1_800_000,
            global_batch_size=1024,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=3e-4, final_learning_rate=3e-6, warmup_steps=8000, decay_steps=1_800_000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )


def llama3_70b() -> LanguageModelJob:
    """Llama 3 70B: 70,553,706,496 parameters; 8,388,608 tokens per step.

    Command: jaxscale explain llama3_70b --mesh fsdp=64,tensor=4
    Source: Grattafiori et al. 2024, "The Llama 3 herd of models", table 3, https://arxiv.org/abs/2407.21783.
    Count: of the published checkpoint, `meta-llama/Meta-Llama-3-70B`. The batch and the steps are ours: the paper
      tells those of the 405B model alone.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=80,
            d_model=8192,
            num_heads=64,
            num_kv_heads=8,
            d_ff=28672,
            vocab_size=128256,
            max_positions=8192,
            rope_base=500_000.0,
            tied_output=False,
        ),
        sequence_length=8192,
        training=TrainingIdentity(
            num_steps=1_800_000,
            global_batch_size=1024,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=1.5e-4, final_learning_rate=1.5e-6, warmup_steps=8000, decay_steps=1_800_000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )


def llama3_405b() -> LanguageModelJob:
    """Llama 3.1 405B: 405,853,388,800 parameters; 16,777,216 tokens per step.

    Command: jaxscale explain llama3_405b --mesh fsdp=256,tensor=8
    Source: Grattafiori et al. 2024, "The Llama 3 herd of models", table 3 and section 3.4.1,
      https://arxiv.org/abs/2407.21783; the stretched rotary positions are those of the published checkpoint.
    Count: of that checkpoint, `meta-llama/Llama-3.1-405B`.
    """
    return LanguageModelJob(
        transformer=decoder_config(
            num_layers=126,
            d_model=16384,
            num_heads=128,
            num_kv_heads=8,
            d_ff=53248,
            vocab_size=128256,
            max_positions=131072,
            rope_base=500_000.0,
            rope_scaling=RopeScaling(
                factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=8192
            ),
            tied_output=False,
        ),
        sequence_length=8192,
        training=TrainingIdentity(
            num_steps=1_200_000,
            global_batch_size=2048,
            optimizer=AdamWConfig(
                schedule=ScheduleConfig(
                    peak_learning_rate=8e-5, final_learning_rate=8e-7, warmup_steps=8000, decay_steps=1_200_000
                ),
                b2=0.95,
                weight_decay=0.1,
            ),
            compute_dtype="bfloat16",
        ),
        operation=Operation(),
    )
