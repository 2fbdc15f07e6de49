"""Preparation of a built model for training, and models sharded among processes."""
