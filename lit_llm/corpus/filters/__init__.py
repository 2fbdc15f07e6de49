"""Which documents stay and how they are written: quality, language, licence, opt-out, Unicode."""
