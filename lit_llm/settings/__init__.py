"""Settings: command lines, config files, presets, and the range of every number.

- `arguments`: the parser of the verbs
- `yaml_file`: the reader of YAML
- `presets`: config files by name
- `ranges`: ranges of numbers
- `checks`: types of arguments given in Python
- `shell`: printed commands
- `replaced_settings`: settings of which one takes the place of the other
"""
