"""The verbs `lit_llm corpus ...` and `lit_llm tokenizer ...`."""
