"""Raw text to tokenised shards: read, clean, deduplicate, tokenise, describe.

- `reading/`: input files to documents
- `filters/`: which documents stay: quality, language, licence, opt-out
- `privacy/`: personal data and keys replaced
- `dedup/`: exact and near duplicates, contamination with evaluation texts
- `kernels/`: everything that numba compiles
- `storage/`: files of the stages, written whole or not at all
- `output/`: the finished corpus: shards, counts, mixture
- `tokenizers/`: training samples and compression
- `card/`: the data card
- `commands/`: the verbs of the command line

On this floor: what a cleaning step is (`block`), which there are and in which order (`chain`),
the settings (`config`), the steps (`steps`), who runs them (`engine`), what depends on what
(`pipeline`) and the whole as one call (`build`).
"""
