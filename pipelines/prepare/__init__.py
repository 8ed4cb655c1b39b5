"""`tf-dlrm prepare`: click logs -> vocabulary, records and a report, in two passes.

The first pass takes lines apart, counts values and keeps the rows, as positions among
the distinct values of their block, in a working folder. When all is counted, the
second pass gives values their ids and writes the records. Each file is read once,
memory is bounded, and an interrupted run resumes where it stopped.
"""

from pipelines.prepare.options import Options
from pipelines.prepare.preparation import BAD_ROWS, VOCABULARY, WORK, prepare

__all__ = ["BAD_ROWS", "VOCABULARY", "WORK", "Options", "prepare"]
