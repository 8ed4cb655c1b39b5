"""Export a model with its parser, load it as a server does, and send it raw rows.

Run it with `python examples/serve_and_query.py`. TensorFlow Serving loads the same
folder; the last lines printed start it and send it the same line.
"""

import json
import pathlib
import tempfile

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import pipelines
import tf_dlrm

rng = np.random.default_rng(0)
country, item = rng.integers(0, 4, 20_000), rng.integers(0, 40, 20_000)
frame = pd.DataFrame(
    {
        "click": rng.random(20_000) < np.where(item % 4 == country, 0.6, 0.1),
        "country": np.array(["DE", "FR", "IT", "PL"])[country],
        "item": [f"i{n}" for n in item],
        "price": rng.lognormal(2, 1, 20_000).round(2),
    }
)
schema = pipelines.Schema(
    label="click",
    dense=[pipelines.Dense("price", transform="log1p")],
    sparse=["country", "item"],
    # The order of the columns in the lines that the exported model takes.
    format=pipelines.Text(",", columns=("click", "country", "item", "price")),
)
parser = pipelines.Parser(pipelines.Vocabulary.build(frame, schema=schema))
train = pipelines.from_dataframe(frame, parser, batch_size=256, shuffle=True)
keras.utils.set_random_seed(0)
model = tf_dlrm.DLRM(parser.spec(8), bottom_mlp_dims=(16, 8), top_mlp_dims=(16, 1))
model.compile(keras.optimizers.Adagrad(0.05, initial_accumulator_value=1e-6))
model.fit(train, epochs=2, verbose=0)

folder = pathlib.Path(tempfile.mkdtemp()) / "ctr"
path = tf_dlrm.export_saved_model(model, folder, preprocessor=parser)
signatures = tf.saved_model.load(path).signatures  # needs neither package

# A line of the log without its label: parser and vocabulary are in the graph.
line = "FR,i5,9.9"
answer = signatures["serving_lines"](lines=tf.constant([line]))
print(f"serving_lines:    {answer['probabilities'].numpy()[0, 0]:.4f}")

# A message by the names of columns; a missing value is left out.
message = tf.train.Example()
message.features.feature["country"].bytes_list.value.append(b"FR")
message.features.feature["item"].bytes_list.value.append(b"i5")
message.features.feature["price"].float_list.value.append(9.9)
examples = tf.constant([message.SerializeToString()])
answer = signatures["serving_examples"](examples=examples)
print(f"serving_examples: {answer['probabilities'].numpy()[0, 0]:.4f}")

new = pd.DataFrame({"country": ["FR"], "item": ["i5"], "price": [9.9]})
features = pipelines.from_dataframe(new, parser, label=None)
print(f"model.predict:    {model.predict(features, verbose=0)[0, 0]:.4f}")

print("The same question to TensorFlow Serving:")
server = "docker run -p 8501:8501 -e MODEL_NAME=ctr"
print(f"{server} -v {folder}:/models/ctr tensorflow/serving")
body = json.dumps({"signature_name": "serving_lines", "instances": [line]})
print(f"curl http://localhost:8501/v1/models/ctr:predict -d '{body}'")
