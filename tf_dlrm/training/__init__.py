"""Training: the row-sparse step, metrics, callbacks, the adapter to Keras."""
