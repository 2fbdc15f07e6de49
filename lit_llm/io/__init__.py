"""Files, locks and number formats, one implementation each for the whole package.

- `atomic`: files and folders that appear complete or not at all
- `cache`: the default cache directory
- `locks`: locks between processes of one machine, which end with their process
- `run_lock`: the lock of a run folder, which processes on other machines see too
- `streams`: standard input and output
- `jsonl`: files of JSON lines
- `metrics`: a run's metrics.csv
- `numbers`: numbers formatted for people
"""
