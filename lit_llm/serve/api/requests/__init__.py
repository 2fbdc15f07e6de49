"""Requests: their fields and types, and the prompts and grammars made of them."""
