"""LightningDataModules and the order in which samples are drawn."""
