"""Pure TensorFlow functions: the same eagerly, in tf.data and in a SavedModel."""
