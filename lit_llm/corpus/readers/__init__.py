"""One module a format. Each reader gives the documents of a part's file; what goes wrong with the file, it raises."""
