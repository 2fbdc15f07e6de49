"""The OpenAI API over the generation engine."""
