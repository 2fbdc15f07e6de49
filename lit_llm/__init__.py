"""lit_llm: train your own ChatGPT, as Lightning modules.

The names in ``__all__`` are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lit_llm.models.kernels.cpu_threads import wait_briefly

wait_briefly()  # torch reads its thread settings when it is imported

try:
    __version__ = version("lit_llm")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0+unknown"

_EXPORTS = {
    "Transformer": "lit_llm.models.transformer",
    "TransformerConfig": "lit_llm.models.config",
    "Tokenizer": "lit_llm.models.tokenizer",
    "LoRAConfig": "lit_llm.models.lora_config",
    "generate": "lit_llm.models.generation.generate",
    "Sampling": "lit_llm.models.generation.sampling",
    "LanguageModule": "lit_llm.training.language",
    "PretrainModule": "lit_llm.training.pretrain",
    "SFTModule": "lit_llm.training.finetuning.sft",
    "DPOModule": "lit_llm.training.preferences.dpo",
    "RewardModule": "lit_llm.training.preferences.reward",
    "PretrainDataModule": "lit_llm.data.pretrain",
    "InstructionDataModule": "lit_llm.data.instructions",
    "PreferenceDataModule": "lit_llm.data.preferences",
    "ChatFormat": "lit_llm.data.chat.chat_format",
    "MuonAdamW": "lit_llm.training.optimizers",
    "Checkpoint": "lit_llm.training.callbacks.checkpoint",
    "SampleCallback": "lit_llm.training.callbacks.samples",
    "ThroughputCallback": "lit_llm.training.callbacks.throughput",
    "ProgressBar": "lit_llm.training.callbacks.progress",
    "SpikeGuard": "lit_llm.training.callbacks.spike_guard",
    "FreezeGarbage": "lit_llm.training.callbacks.garbage",
    "ForgettingCheck": "lit_llm.evaluate.forgetting.check",
    "RetentionCheck": "lit_llm.evaluate.forgetting.check",
    "GenerationCheck": "lit_llm.evaluate.generation_check",
    "LMEvalCallback": "lit_llm.evaluate.callback",
    "FSDP2Strategy": "lit_llm.training.strategy",
    "CSVLogger": "lit_llm.training.loggers",
    "NeptuneLogger": "lit_llm.training.neptune.logger",
    "RunReport": "lit_llm.report.callback",
    "UserError": "lit_llm.errors",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lit_llm' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
