"""Attention, loss and matrix products: the place that chooses by device."""
