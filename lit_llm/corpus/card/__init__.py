"""The data card of a corpus: datacard.json, datacard.html and README.md."""
