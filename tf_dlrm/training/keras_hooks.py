"""The one adapter to what Keras keeps private. Checked against Keras 3.15.1."""


def loss_tracker(model):
    """The `Mean` metric behind the loss that `fit` reports.

    Keras' own `train_step` updates it; `Model.metrics` lists it, but cannot tell it
    from a user's metric.
    """
    return model._loss_tracker
