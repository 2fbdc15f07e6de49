"""Which models tensor parallelism can cut. The planner asks too, so torch is not imported here."""

from __future__ import annotations

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig


def refuse_cut(config: TransformerConfig, size: int, lora: bool = False) -> None:
    """Raise UserError if a model of this shape, with LoRA or not, cannot be cut into ``size``."""
    for name in ("num_heads", "num_kv_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise UserError(
                f"tensor_parallel_size={size} does not divide {name}={getattr(config, name)}"
            )
    if config.qk_norm in ("projection", "per_head"):
        raise UserError(
            f"tensor_parallel_size={size}: a model with {config.qk_norm} qk_norm cannot be cut; "
            "set it to 1"
        )
    if lora or any(config.has_experts(i) for i in range(config.num_layers)):
        raise UserError(
            f"tensor_parallel_size={size}: mixtures of experts and LoRA cannot be cut yet; set it "
            "to 1"
        )
