"""Answers: from the engine's tokens to messages, thoughts and tool calls."""
