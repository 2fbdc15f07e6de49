"""Evaluation with lm-eval of a model in memory: command, callback and offline tasks.

Modules import lm_eval only when they run a task.
"""
