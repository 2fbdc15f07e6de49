"""Pure PyTorch model code: what every other package builds on. Imports torch, never lightning."""
