"""Rows of tables: blocks, and tables with more rows than int32 can number."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dlrm.runtime import rows


def test_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(rows, "_BLOCK_VALUES", 6)
    table = tf.Variable(tf.zeros((11, 2)))
    values = np.arange(16.0).reshape(8, 2)
    rows.write_range(table, 2, 8, lambda a, b: values[a:b])
    np.testing.assert_array_equal(rows.read_range(table, 2, 8), values)
    np.testing.assert_array_equal(table[:2], np.zeros((2, 2)))
    np.testing.assert_array_equal(table[10:], np.zeros((1, 2)))


@pytest.mark.parametrize("row", [0, 4, 10])
def test_is_finite(monkeypatch, row):
    monkeypatch.setattr(rows, "_BLOCK_VALUES", 6)
    table = tf.Variable(tf.zeros((11, 2)))
    assert rows.is_finite(table)
    table[row, 1].assign(np.inf)
    assert not rows.is_finite(table)


def test_rows_of_large_tables_are_int64(monkeypatch):
    assert rows.row_dtype((1 << 31) - 1) == tf.int32
    assert rows.row_dtype(1 << 31) == tf.int64
    monkeypatch.setattr(rows, "INT32_ROWS", 10)  # "large" from 11 rows on
    seen = []

    def spy(name):
        function = getattr(tf.raw_ops, name)

        def call(**arguments):
            seen.append(arguments["indices"].dtype)
            return function(**arguments)

        monkeypatch.setattr(tf.raw_ops, name, call)

    gather = tf.gather

    def spied_gather(table, indices):
        seen.append(indices.dtype)
        return gather(table, indices)

    spy("ResourceScatterUpdate")
    monkeypatch.setattr(tf, "gather", spied_gather)
    for num_rows, dtype in ((10, tf.int32), (11, tf.int64)):
        table = tf.Variable(tf.zeros((num_rows, 2)))
        rows.write_range(table, 0, num_rows, lambda a, b: np.ones((b - a, 2)))
        rows.read_range(table, 0, num_rows)
        rows.is_finite(table)
        rows.read_for_any_optimizer(
            lambda handle: (tf.zeros(1), tf.zeros(1)), table, None, None
        )
        assert seen == [dtype] * 4
        seen.clear()
