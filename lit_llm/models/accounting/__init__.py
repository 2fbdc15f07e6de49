"""FLOPs of a model, and peak rates, memory and prices of accelerators."""
