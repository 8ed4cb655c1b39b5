"""The reader of text and Parquet files: from rows of a schema to batches.

`parser.Parser`, in TensorFlow operations, is the specification. `text` and `tables` are
fast equivalents in NumPy; the tests check that they equal it bit for bit.
`scanning.scan` is the loop over files, `reading.read` the same as a `tf.data.Dataset`.
"""
