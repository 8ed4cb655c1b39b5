"""Train on a CSV file of your own, with a schema that is guessed and corrected.

Run it with `python examples/own_csv.py`. It writes into a temporary folder; for your
own log, set `train_path` and `valid_path`, and look at what the guess prints.
"""

import pathlib
import tempfile

import keras
import numpy as np
import pandas as pd

import pipelines
import tf_dlrm

rng = np.random.default_rng(0)


def write_log(path, num_rows):
    # Each country prefers one item in five: 60 % of those are clicked, else 10 %.
    country, item = rng.integers(0, 5, num_rows), rng.integers(0, 40, num_rows)
    click = rng.random(num_rows) < np.where(item % 5 == country, 0.6, 0.1)
    columns = {
        "click": click.astype(int),
        "country": np.array(["DE", "FR", "IN", "JP", "US"])[country],
        "item": [f"i{n}" for n in item],
        "price": rng.lognormal(2, 1, num_rows).round(2),
        "seconds_on_page": np.where(click, rng.exponential(30, num_rows), 0).round(1),
    }
    pd.DataFrame(columns).to_csv(path, index=False)


folder = pathlib.Path(tempfile.mkdtemp())
train_path, valid_path = folder / "train.csv", folder / "valid.csv"
write_log(train_path, 20_000)
write_log(valid_path, 5_000)

guess = pipelines.Schema.guess(train_path)
print(guess.summary())
# Nobody knows the time on the page before the click: a model must not read it.
schema = guess.without("seconds_on_page")

# The vocabulary and all learned numbers come from the training rows alone.
vocabulary = pipelines.Vocabulary.build(train_path, schema=schema)
parser = pipelines.Parser(vocabulary)
train = pipelines.read(train_path, parser, batch_size=256, shuffle=True, seed=0)
valid = pipelines.read(valid_path, parser)

keras.utils.set_random_seed(0)
model = tf_dlrm.DLRM(parser.spec(16), bottom_mlp_dims=(16,), top_mlp_dims=(32, 1))
model.compile(
    keras.optimizers.Adagrad(0.05, initial_accumulator_value=1e-6),
    loss="binary_crossentropy",
    metrics=tf_dlrm.metrics.click_metrics(),
)
model.fit(train, epochs=2, verbose=2)

result = model.evaluate(valid, return_dict=True, verbose=0)
print(f"AUC on new rows: {result['auc']:.3f} (the best possible is about 0.75)")
