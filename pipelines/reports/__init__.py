"""Compare runs in tables and charts, read from their folders without TensorFlow.

`runs` reads their folders, `times` computes how the time was spent, `measures` the
columns of the table, `run_table`, `curves` and `steps` show them, and `comparison` puts
the report together.
"""
