"""Verbs that use a model at the terminal: chat, generate, import."""
