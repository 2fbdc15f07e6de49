"""LightningDataModules for pretraining and finetuning, and the order of samples."""
