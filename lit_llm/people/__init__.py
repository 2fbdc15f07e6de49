"""What serving and annotation share: keys, limits and the store."""
