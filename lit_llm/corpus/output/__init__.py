"""The finished corpus: encoding, shards, statistics, mixture of sources, and reading it again."""
