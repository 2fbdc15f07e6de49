"""What an evaluation leaves on disk: results, single items, and the history of a model."""
