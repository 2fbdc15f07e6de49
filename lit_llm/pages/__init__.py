"""Style sheet and text escaping that all HTML pages of lit_llm share."""
