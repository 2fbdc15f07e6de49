"""The verbs fit, validate, test and predict: command line, run folder, launchers.

- `command`: LightningCLI with presets and one-line errors
- `mistakes`: what a user set wrong on the Trainer
- `run_folder`: which folder and checkpoint a call works with
- `saved_config`: a run's config.yaml
- `launchers`: which launcher started this process
- `orphans`: processes that lost the one that started them
"""
