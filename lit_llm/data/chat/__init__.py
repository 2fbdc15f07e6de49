"""Chat templates: messages to text, token ids, and what of them is learnt."""
