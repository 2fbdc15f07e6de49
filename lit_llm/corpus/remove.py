def removed_ids(folder): return frozenset()
