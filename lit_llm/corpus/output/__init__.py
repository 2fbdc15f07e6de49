"""The finished corpus: encoding, shards, statistics, mixture of sources, and loading it."""
