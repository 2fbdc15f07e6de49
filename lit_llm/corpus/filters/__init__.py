"""Filters and Unicode normalisation: quality, language, licence, opt-out."""
