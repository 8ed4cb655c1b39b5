"""Search for good options of a run: spaces, trials, and the files of a search."""
