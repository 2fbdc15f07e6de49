"""Models and tokenizers on disk: Hugging Face directories, PEFT adapters, run folders.

`gguf/` holds the same for GGUF files.
"""
