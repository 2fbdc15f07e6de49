"""lm-eval over a model in memory: from the command line, in training, on tasks that need no hub.

Nothing here is imported before it is used, and lm_eval itself only by what runs a task.
"""
