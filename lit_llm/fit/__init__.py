"""The verbs fit, validate, test and predict: command line, run folder, launchers.

- `command`: LightningCLI with presets and one-line errors
- `mistakes`: wrong settings of the Trainer
- `run_folder`: run folder and checkpoint of a call
- `saved_config`: a run's config.yaml
- `launchers`: detection of torchrun, srun and other launchers
- `orphans`: processes end when their parent process is gone
"""
