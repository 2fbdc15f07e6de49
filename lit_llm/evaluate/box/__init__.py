"""A box in which programs that a model wrote are run and tested (docs/code_tasks.md)."""
