"""Command lines, config files, presets, and ranges of settings.

- `arguments`: command-line parser of the verbs
- `config_files`: --config of all verbs
- `yaml_file`: YAML reader
- `presets`: config files by name
- `ranges`: allowed ranges of numbers
- `checks`: type checks of Python arguments
- `shell`: commands printed for the user
- `replaced_settings`: settings that exclude each other
"""
