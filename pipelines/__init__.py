"""Files to tensors, and the whole job: Criteo data, generators, runs, the command."""
