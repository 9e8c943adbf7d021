"""What carries main.py, FaceAging.py and ops.py and is not the paper: one trade a room; skip it at first.

This file sets what TensorFlow and Keras read from the environment when they are imported: all that imports a room of
this house before them computes the same whatever the user has set for other programs.
"""

import os

# Keras would take another backend, number type or order of axes from the user's environment or ~/.keras/keras.json
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["KERAS_HOME"] = os.devnull  # a folder that cannot be: no keras.json is found in it, and none is written
for name in ("KERAS_NNX_ENABLED", "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
    os.environ.pop(name, None)

# TensorFlow leaves oneDNN off on CPUs without AVX-512 extensions: there a step takes 1.8 times as long
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# without it TensorFlow takes a GPU's whole memory at once
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
