"""Training samples of tokenizers and how well tokenizers compress."""
