import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.tasks.clustering import label_table

TABLE = np.array([[4, 0, 7, 7], [1, 2, 3, -1]], np.int32)  # two heads, four images


@pytest.mark.parametrize("ids", [[3, 0, 0], [3.0, 0.0, 0.0]])  # floats: ids that Keras has averaged
def test_lookup_is_indexing_by_id(ids):
    ids = tf.constant(ids)
    whole = np.asarray(ids).astype(int)
    for table in (TABLE, TABLE[1]):
        found = label_table.lookup(tf.Variable(table), ids)
        np.testing.assert_array_equal(found, table[..., whole])
        assert found.dtype == tf.int32
