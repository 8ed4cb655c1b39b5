"""Growing tables on several devices equal those on one: ids, weights and state."""

import pytest
from helpers.devices import on_devices
from helpers.growing_model import compare, make_data, make_model
from helpers.sharded_model import strategy_of

# Plans, forms of ids and optimizers so that every two meet in the integration tier.
CASES = [
    (None, "one_hot", "adagrad"),
    ("row_wise", "one_hot", "adam"),
    ("row_wise", "padded", "adagrad"),
    ("column_wise", "ragged", "adagrad"),
    ("data_parallel", "padded", "adam"),
    ("table_wise", "ragged", "sgd"),
]


def train(model, form, batch_size=18):
    model.fit(make_data(90, batch_size, form), epochs=2, verbose=0)
    model.evaluate(make_data(30, batch_size, form, seed=5), verbose=0)
    return model


def compare_devices(num_devices, plan, form, optimizer):
    one = train(make_model(optimizer), form)
    with strategy_of(num_devices).scope():
        many = train(make_model(optimizer, plan=plan), form)
    # Adam's first steps are as large for small gradients as for others.
    compare(one, many, atol=1e-4 if optimizer == "adam" else 1e-5)


@on_devices(2)
def test_row_ranges_on_two_devices():
    compare_devices(2, "row_wise", "one_hot", "adagrad")


@pytest.mark.integration
@pytest.mark.parametrize("num_devices", [2, 3])
@pytest.mark.parametrize(("plan", "form", "optimizer"), CASES)
def test_plans(num_devices, plan, form, optimizer):
    on_devices(num_devices)(compare_devices)(num_devices, plan, form, optimizer)
