"""Files of the stages and changes to a folder that happen whole or not at all."""
