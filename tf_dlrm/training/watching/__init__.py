"""What one watches of a training run in TensorBoard, a callback for each thing.

`tf_dlrm.training.callbacks` has their names.
"""
