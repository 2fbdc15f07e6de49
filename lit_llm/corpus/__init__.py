"""Raw text to tokenised shards: sources -> exact deduplication -> tokenizer -> litdata shards and a data card."""
