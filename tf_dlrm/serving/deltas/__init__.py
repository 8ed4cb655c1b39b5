"""Deltas: the changes of a published model, as a verified chain of files."""
