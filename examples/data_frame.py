"""Train on a pandas DataFrame, and write the predictions back into the frame.

Run it with `python examples/data_frame.py`. The frame holds raw columns: texts, numbers
and missing cells. No file is written.
"""

import keras
import numpy as np
import pandas as pd

import pipelines
import tf_dlrm

rng = np.random.default_rng(0)
num_rows = 20_000
frame = pd.DataFrame(
    {
        "age": rng.choice([24.0, 38.0, 51.0, np.nan], num_rows),
        "country": rng.choice(["DE", "FR", "IT", "PL"], num_rows),
        "item": [f"item-{n}" for n in rng.integers(0, 100, num_rows)],
    }
)
# Each country likes one item in four; a click follows with 60%, otherwise with 10%.
taste = frame["item"].str[5:].astype(int) % 4
likes = frame["country"].factorize(sort=True)[0] == taste
frame["click"] = (rng.random(num_rows) < np.where(likes, 0.6, 0.1)).astype(int)
train_rows, new_rows = frame[:16_000], frame[16_000:].copy()

schema = pipelines.Schema(
    label="click",
    dense=[pipelines.Dense("age", transform="standardize")],
    sparse=["country", "item"],
)
vocabulary = pipelines.Vocabulary.build(train_rows, schema=schema)
parser = pipelines.Parser(vocabulary)
train = pipelines.from_dataframe(train_rows, parser, batch_size=256, shuffle=True)

keras.utils.set_random_seed(0)
model = tf_dlrm.DLRM(parser.spec(8), bottom_mlp_dims=(16, 8), top_mlp_dims=(16, 1))
model.compile(
    keras.optimizers.Adagrad(0.05, initial_accumulator_value=1e-6),
    loss="binary_crossentropy",
    metrics=tf_dlrm.metrics.click_metrics(),
)
model.fit(train, epochs=4, verbose=2)

# Without a label the dataset holds features only; rows keep the order of the frame.
features = pipelines.from_dataframe(new_rows, parser, label=None)
new_rows["p_click"] = model.predict(features, verbose=0)[:, 0]
print(new_rows.head())
by_taste = new_rows.groupby(likes[16_000:])[["click", "p_click"]].mean()
by_taste.index = ["other items", "items that the country likes"]
print(by_taste.round(3))
