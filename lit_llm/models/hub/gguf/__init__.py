"""GGUF files, both ways: container, names, weights and tokenizers."""
