"""Eight ways in which people who know the machine would train a 7B decoder on 256 v5e chips, and four more beside them.

All with the recipe's batch of 1,024 sequences of 4,096 tokens. The experts would share the parameters among all chips;
keep matmuls besides; split tensors over 2, 4 or 8 chips or a whole dim of the torus; or have replicas that share
parameters in groups, over half of the chips or one dim of the torus.

References: Rajbhandari et al. 2019 (ZeRO), https://arxiv.org/abs/1910.02054; Narayanan et al. 2021 (Megatron-LM),
https://arxiv.org/abs/2104.04473; Zhao et al. 2023 (PyTorch FSDP, hybrid sharding), https://arxiv.org/abs/2304.11277;
Austin et al. 2025, How to Scale Your Model, section 5, https://jax-ml.github.io/scaling-book/training/
"""

from jaxscale.cost.tune_candidates import Settings
from jaxscale.mesh import MeshSpec

RECIPE, TOPOLOGY = "llama2_7b", "v5e:16x16"
Plan = tuple[MeshSpec, Settings]


def _plan(mesh: str, remat: str, num_microbatches: int, optimizer_dtype: str = "float32") -> Plan:
    settings = Settings(remat=remat, num_microbatches=num_microbatches, optimizer_dtype=optimizer_dtype)
    return MeshSpec.parse(mesh), settings


EXPERT_PLANS: tuple[Plan, ...] = (
    _plan("fsdp=256", "full", 4),
    _plan("fsdp=256", "matmuls", 4),
    _plan("fsdp=128,tensor=2", "full", 4),
    _plan("fsdp=64,tensor=4", "full", 4),
    _plan("fsdp=32,tensor=8", "full", 8),
    _plan("fsdp=16,tensor=16", "full", 16),
    _plan("data=2,fsdp=128", "full", 4),
    _plan("data=16,fsdp=16", "full", 4),
)
OTHER_PLANS: tuple[Plan, ...] = (
    _plan("fsdp=256", "full", 2),
    _plan("data=4,fsdp=64", "full", 2),
    _plan("fsdp=128,tensor=2", "matmuls", 8, "bfloat16"),
    _plan("data=8,fsdp=8,tensor=4", "full", 8),
)
