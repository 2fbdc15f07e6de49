"""The database of keys, usage, requests and acts of administrators."""
