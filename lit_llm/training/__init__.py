"""LightningModules, callbacks, loggers, optimizers and schedules."""
