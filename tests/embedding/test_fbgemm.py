"""Tables, slots and bags equal those of FBGEMM."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.layers import EmbeddingCollection

pytestmark = pytest.mark.xla


@pytest.mark.parametrize("case", ["row_wise", "adagrad_torch"])
def test_equals_fbgemm(case):
    """FBGEMM's fused tables, with repeated ids and bags of several."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("fbgemm_gpu", reason="fbgemm is not installed")
    from fbgemm_gpu import split_table_batched_embeddings_ops_training as fbgemm
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    width, num_rows = 8, 12
    layer = EmbeddingCollection([EmbeddingTable("t", num_rows, width)])
    if case == "row_wise":
        layer.build_optimizer(optimizers.RowWiseAdagrad(0.1))
        kind = EmbOptimType.EXACT_ROWWISE_ADAGRAD
    else:
        layer.build_optimizer(
            optimizers.SparseAdagrad(0.1, 0.0, 1e-8, epsilon_outside_root=True)
        )
        kind = EmbOptimType.EXACT_ADAGRAD
    other = fbgemm.SplitTableBatchedEmbeddingBagsCodegen(
        [
            (
                num_rows,
                width,
                fbgemm.EmbeddingLocation.HOST,
                fbgemm.ComputeDevice.CPU,
            )
        ],
        optimizer=kind,
        learning_rate=0.1,
        eps=1e-8,
    )
    other.split_embedding_weights()[0].copy_(torch.tensor(layer.get_table("t")))
    rng = np.random.default_rng(6)
    for _ in range(4):
        lengths = rng.integers(0, 6, 10)
        values = rng.integers(0, num_rows, lengths.sum())
        g = rng.normal(size=(10, 1, width)).astype("float32")
        inner = tf.RaggedTensor.from_row_lengths(values, lengths)
        ids = tf.RaggedTensor.from_uniform_row_length(inner, 1)
        out = other(
            torch.tensor(values), torch.tensor(np.concatenate([[0], lengths.cumsum()]))
        )
        np.testing.assert_allclose(
            layer(ids)[:, 0], out.detach().numpy(), atol=2e-6, rtol=1e-5
        )
        out.backward(torch.tensor(g[:, 0]))
        layer.apply_gradients(tf.constant(g), ids)
    np.testing.assert_allclose(
        layer.get_table("t"), other.split_embedding_weights()[0].numpy(), atol=2e-6
    )
