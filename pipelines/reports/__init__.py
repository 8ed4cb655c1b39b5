"""Runs side by side: a table, and pictures of what and how they learned.

`logs` reads their event files, `runs` their folders, `times` tells where the time went,
`measures` what they reached, `table` and `curves`, `calibration`, `steps` show it,
`report` puts it together. All is read from the folders alone, without TensorFlow.
"""
