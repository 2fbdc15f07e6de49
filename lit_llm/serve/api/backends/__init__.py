"""Other OpenAI-compatible servers behind this one."""
