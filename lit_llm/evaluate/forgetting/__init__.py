"""What finetuning takes from its base: scores paired by item, and the distance to the base."""
