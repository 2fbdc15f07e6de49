"""Verbs that use a model in the terminal: chat, generate, import, export, inspect, launch."""
