"""One small callback a file; each works under a plain Trainer with any LightningModule."""
