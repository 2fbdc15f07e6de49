"""Training on preferences: losses of pairs and of judged answers, references, reward models."""
