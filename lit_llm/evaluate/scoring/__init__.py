"""Log-likelihoods of many requests: common beginnings are computed once, ranks share the work."""
