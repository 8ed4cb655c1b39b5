"""`tf-dlrm prepare`: from click logs to records, vocabulary and report in two passes.

The first pass splits lines into values, counts the values and stores the rows in a
working folder, as positions among the distinct values of their block. The second pass
replaces values by ids and writes the records. Each file is read once, memory is
bounded, and an interrupted run resumes where it stopped.
"""

from pipelines.prepare.options import Options
from pipelines.prepare.preparation import BAD_ROWS, VOCABULARY, WORK, prepare

__all__ = ["BAD_ROWS", "VOCABULARY", "WORK", "Options", "prepare"]
