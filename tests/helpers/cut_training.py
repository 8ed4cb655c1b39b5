"""`fit` with `ResumableTraining` that an error ends after some steps."""

import keras


class CutError(Exception):
    pass


class Cut(keras.callbacks.Callback):
    """Ends `fit` by an error after some steps."""

    def __init__(self, num_steps):
        super().__init__()
        self.left = num_steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise CutError


def fit(checkpoint, model, dataset, epochs=2, cut_after=None, **options):
    """Returns the history, `None` if it was cut."""
    more = [] if cut_after is None else [Cut(cut_after)]
    try:
        return model.fit(
            checkpoint.resume(model, dataset),
            initial_epoch=checkpoint.initial_epoch,
            epochs=epochs,
            callbacks=[checkpoint, *more],
            verbose=0,
            **options,
        ).history
    except CutError:
        return None
