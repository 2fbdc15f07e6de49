"""Storage: files of the stages, and changes to a folder that happen completely or not at all."""
