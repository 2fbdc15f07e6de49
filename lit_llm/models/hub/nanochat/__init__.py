"""nanochat's own checkpoints: ``model_*.pt`` with its meta JSON, and its tokenizer."""
