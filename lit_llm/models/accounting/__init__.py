"""FLOPs, peak rates, memory and prices of accelerators."""
