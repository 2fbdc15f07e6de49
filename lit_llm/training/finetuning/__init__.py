"""Finetuning: SFTModule, and what its settings do to the model."""
