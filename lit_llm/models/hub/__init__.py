"""Models and tokenizers on disk: Hugging Face directories, PEFT adapters, run folders; `gguf/` for
GGUF files."""
