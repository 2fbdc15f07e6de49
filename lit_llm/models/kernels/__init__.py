"""Kernels for attention, loss and matrix products, chosen by device."""
