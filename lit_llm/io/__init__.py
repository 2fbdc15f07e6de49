"""Files and numbers as every part of lit_llm writes and reads them.

- `atomic`: files and folders that appear whole or not at all
- `locks`: locks between processes, which die with their process
- `run_lock`: the lock of a run folder, which other machines see too
- `jsonl`: files of JSON lines
- `metrics`: a run's metrics.csv
- `numbers`: numbers for people
"""
