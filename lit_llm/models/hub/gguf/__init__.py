"""Read and write GGUF files: container, names, weights and tokenizers."""
