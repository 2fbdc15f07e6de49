"""Pure PyTorch model code that every other package builds on. It imports torch, never lightning.

- `kernels/`: attention, loss and matrix products, chosen by device
- `hub/`: models and tokenizers on disk: Hugging Face directories, GGUF files, PEFT adapters
- `parallel/`: preparation of a built model for training; sharded tensors and checkpoints
- `generation/`: sampling with a cache
- `accounting/`: FLOPs, accelerators and their prices

This folder itself holds the model, from its `config` to `transformer`, and the `tokenizer`.
"""
