#!/usr/bin/env bash
# Loads an export in an environment with TensorFlow 2.15.1 and tensorflow-addons 0.23.0, compares its
# features with those computed in this environment, and fine-tunes it with tfa.optimizers.LAMB.
#
#     tools/check_addons.sh [EXPORT]        EXPORT is saved_models/rotation_cifar10/1 by default
#
# PYTHON is an interpreter with keras_ssl (default: python). PYTHON_ADDONS is an interpreter of Python 3.9
# to 3.11, which TensorFlow 2.15 needs (default: python3).
set -euo pipefail
export TF_CPP_MIN_LOG_LEVEL=3
here=$(cd "$(dirname "$0")/.." && pwd)
model=${1:-$here/saved_models/rotation_cifar10/1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON_ADDONS:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "tensorflow-cpu==2.15.1" "tensorflow-addons==0.23.0" "setuptools<81"

"${PYTHON:-python}" - "$model" "$work/expected.npz" <<'EOF'
import sys
import numpy as np
from keras_ssl.serving.server.servable import Servable

images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
features = Servable(sys.argv[1]).run({"images": images})["features"]
np.savez(sys.argv[2], images=images, features=features)
EOF

"$work/venv/bin/python" - "$model" "$work/expected.npz" <<'EOF'
import sys
import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

expected = np.load(sys.argv[2])
model = tf.saved_model.load(sys.argv[1])
images = tf.constant(expected["images"])
features = model.signatures["serving_default"](images=images)["features"].numpy()
difference = np.abs(features - expected["features"]).max()
print(f"TensorFlow {tf.__version__}, tensorflow-addons {tfa.__version__}: largest difference {difference:.1e}")
assert difference <= 1e-5 * max(1, np.abs(features).max())

labels = tf.constant(np.arange(16) % 2)
head = tf.keras.layers.Dense(2)
optimizer = tfa.optimizers.LAMB(1e-2)
losses = []
for step in range(20):
    with tf.GradientTape() as tape:
        logits = head(model.train(images)["features"])
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    variables = list(model.encoder_trainable_variables) + head.trainable_variables
    gradients = tape.gradient(loss, variables)
    assert all(g is not None for g in gradients)
    optimizer.apply_gradients(zip(gradients, variables))
    losses.append(float(loss))
print(f"fine-tuned with LAMB: loss {losses[0]:.3f} to {losses[-1]:.3f}")
assert losses[-1] < 0.5 * losses[0]
EOF
