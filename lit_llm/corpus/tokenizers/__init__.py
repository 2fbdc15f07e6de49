"""Text samples for training tokenizers, and measurements of how well tokenizers compress."""
