"""The one reader: text and Parquet files -> rows of a schema, and on to batches.

`parser.Parser` is the specification, in TensorFlow operations; `text` and `tables` are
its fast twins in NumPy, which the tests hold to it bit for bit. `scanning.scan` is the
one loop over files, `reading.read` the same as a `tf.data.Dataset`.
"""
