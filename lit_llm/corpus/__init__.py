"""Raw text to tokenised shards: read, clean, deduplicate, tokenise, describe.

- `reading/`: input files to documents
- `filters/`: rules that drop documents: quality, language, licence, opt-out
- `privacy/`: replaces personal data and keys
- `dedup/`: exact and near duplicates, contamination with evaluation texts
- `kernels/`: all functions that numba compiles
- `storage/`: files of the stages, written completely or not at all
- `output/`: the finished corpus: shards, counts, mixture
- `tokenizers/`: training samples and compression
- `card/`: the data card
- `commands/`: the verbs of the command line

The modules of this folder: the protocol of a cleaning step (`block`), the blocks and their order
(`chain`), the settings (`config`), the steps (`steps`), the engine that runs them (`engine`), their
dependencies (`pipeline`), and the whole build as one call (`build`).
"""
