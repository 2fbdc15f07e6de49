"""Text from a model: sampling and generation with a key/value cache."""
