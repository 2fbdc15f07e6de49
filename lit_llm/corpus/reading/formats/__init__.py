"""One module a file format. A reader yields the documents of a part and raises what is wrong with
the file."""
