"""Personal data and keys: patterns, check digits and the block that replaces what they find."""
