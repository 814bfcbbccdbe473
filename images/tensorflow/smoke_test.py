"""Runs with the students' Python inside the tensorflow image, with or without a GPU: python smoke_test.py"""

import os

import numpy as np
import tensorflow as tf

GPUS = tf.config.list_physical_devices("GPU")


def a_gpu_that_was_attached_can_be_used():
    attached = os.path.exists("/dev/nvidiactl")
    assert tf.test.is_built_with_cuda()
    assert attached == bool(GPUS), f"attached: {attached}, usable by TensorFlow: {GPUS}"
    if GPUS:
        print("runs on", tf.config.experimental.get_device_details(GPUS[0]).get("device_name"))
        assert tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))).device.endswith("GPU:0")
    else:
        print("runs on the CPU: no GPU is attached")


def a_network_learns():
    tf.keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 8)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model = tf.keras.Sequential([tf.keras.layers.Dense(32, activation="relu"), tf.keras.layers.Dense(1)])
    model.compile(optimizer=tf.keras.optimizers.Adam(0.02), loss="mse")
    losses = model.fit(x, y, epochs=12, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 10, losses


def a_convolution_is_computed():
    # On a GPU this is cuDNN's work: its wheel has to fit TensorFlow's.
    image = tf.reshape(tf.range(16.0), (1, 4, 4, 1))
    assert float(tf.reduce_sum(tf.nn.conv2d(image, tf.ones((2, 2, 1, 1)), 1, "VALID"))) == 270.0


print("TensorFlow", tf.__version__, "Keras", tf.keras.__version__)
for check in (a_gpu_that_was_attached_can_be_used, a_network_learns, a_convolution_is_computed):
    check()
    print("ok:", check.__name__.replace("_", " "))
