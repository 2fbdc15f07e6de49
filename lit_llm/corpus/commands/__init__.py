"""The commands `lit_llm corpus ...` and `lit_llm tokenizer ...`."""
