"""The data card of a corpus, written as datacard.json, datacard.html and README.md."""
