"""Pure PyTorch model code: what every other package builds on. Imports torch, never lightning.

- `kernels/`: attention, loss and matrix products by device
- `hub/`: models and tokenizers on disk: Hugging Face directories, GGUF files, PEFT adapters
- `parallel/`: what is done to a built model before training; sharded tensors and checkpoints
- `generation/`: sampling with a cache
- `accounting/`: FLOPs, accelerators and their prices

On this floor: the model itself, from its `config` to `transformer`, and the `tokenizer`.
"""
