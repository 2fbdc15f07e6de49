"""Runs logged to Neptune: the logger, and a reader of what its client wrote offline."""
