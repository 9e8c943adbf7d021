"""The layers and Adam of support.fast_ops, compared with those of Keras."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from FaceAging import FaceAging
from support import fast_ops
from tests.conftest import TINY


def outputs_and_gradients(layer, inputs):
    """Return a layer's outputs in training and the gradients of their weighted sum: of inputs and trainable weights."""
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
        weights = np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32)
        total = tf.reduce_sum(outputs * weights)
    return [outputs, *tape.gradient(total, [inputs, *layer.trainable_weights])]


def compare(tested, reference, shape):
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tested.build(shape)
    reference.build(shape)
    reference.set_weights([weight + np.float32(0.1) for weight in tested.get_weights()])
    tested.set_weights(reference.get_weights())
    for _ in range(2):
        pairs = zip(outputs_and_gradients(tested, inputs), outputs_and_gradients(reference, inputs), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)
    for one, other in zip(tested.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# outputs of 2 to 16 pixels: computed by matrix products entirely, in part, and not at all
@pytest.mark.parametrize("size_kernel", [3, 5])
@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_convolution_equals_keras(side, size_kernel):
    arguments = (6, size_kernel, 2, "same")
    compare(fast_ops.Conv2D(*arguments), layers.Conv2D(*arguments), [3, side, side, 5])


@pytest.mark.parametrize(("shape", "stride"), [([8, 8], 1), ([7, 7], 2), ([8, 4], 2)])
def test_convolution_of_another_stride_or_shape_equals_keras(shape, stride):
    arguments = (6, 5, stride, "same")
    compare(fast_ops.Conv2D(*arguments), layers.Conv2D(*arguments), [3, *shape, 5])
    compare(fast_ops.Conv2DTranspose(*arguments), layers.Conv2DTranspose(*arguments), [3, *shape, 5])


def test_convolution_of_one_pixel_has_a_finite_gradient_in_bfloat16():
    """TensorFlow's gradient leaves memory uninitialised here, which led to NaN losses at --image_size 8."""
    layer = fast_ops.Conv2D(128, 5, 2, "same", dtype="bfloat16")
    inputs = np.random.default_rng(0).normal(size=[10, 1, 1, 64]).astype(np.float32)
    layer.build(inputs.shape)
    (middle,) = (kernel[2, 2] for kernel in layer.get_weights()[:1])
    for _ in range(20):
        filled = [np.full(number, np.nan, np.float32) for number in range(1000, 1_000_000, 50_000)]
        del filled  # freed memory full of NaN: a result that is not written would have NaN
        outputs, _, kernel_gradient, _ = outputs_and_gradients(layer, tf.cast(inputs, tf.bfloat16))
        gradient = np.array(kernel_gradient, np.float32)
        assert np.isfinite(gradient).all() and np.count_nonzero(gradient) == np.count_nonzero(gradient[2, 2])
    expected = inputs[:, 0, 0] @ middle.astype(np.float32)
    np.testing.assert_allclose(np.array(outputs, np.float32)[:, 0, 0], expected, atol=0.1)


@pytest.mark.parametrize("filters", [6, 16])  # the bias of a multiple of 16 is added otherwise
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_transposed_convolution_equals_keras(side, stride, activation, filters):
    arguments = {"filters": filters, "kernel_size": 5, "strides": stride, "padding": "same", "activation": activation}
    compare(fast_ops.Conv2DTranspose(**arguments), layers.Conv2DTranspose(**arguments), [3, side, side, 4])


@pytest.mark.parametrize("shape", [[6, 4, 4, 3], [6, 5]])
def test_batch_normalisation_equals_keras(shape):
    arguments = {"momentum": 0.999, "epsilon": 1e-3, "scale": False}
    compare(fast_ops.BatchNormalization(**arguments), layers.BatchNormalization(**arguments), shape)


def test_total_variation_gradient_equals_tensorflows():
    def plainly(images):
        rows, columns = images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]
        return (tf.reduce_sum(rows**2) / 2 / 6 + tf.reduce_sum(columns**2) / 2 / 8) / 3

    images = tf.constant(np.random.default_rng(0).normal(size=[3, 6, 8, 2]).astype(np.float32))
    gradients = []
    for function in (fast_ops.total_variation, plainly):
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = 0.3 * function(images)
        gradients.append(tape.gradient(total, images))
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_adam_equals_keras():
    random = np.random.default_rng(0)
    start = random.normal(size=[7, 5]).astype(np.float32)
    tested, reference = keras.Variable(start), keras.Variable(start)
    adams = {
        fast_ops.Adam(2e-4, beta_1=0.5, epsilon=1e-8): tested,
        keras.optimizers.Adam(2e-4, 0.5, epsilon=1e-8): reference,
    }
    for _ in range(5):
        gradient = random.normal(size=[7, 5]).astype(np.float32)
        for adam, variable in adams.items():
            adam.apply([tf.constant(gradient)], [variable])
    assert np.abs(tested.numpy() - start).mean() > 1e-4
    np.testing.assert_allclose(tested.numpy(), reference.numpy(), rtol=1e-6, atol=1e-7)


def test_model_is_freed_after_use():
    """tf.custom_gradient would keep each graph that it was traced in, with the weights of E and G."""
    model = FaceAging(**TINY | {"size_image": 16})
    model.age(np.zeros([1, 16, 16, 3], np.uint8), [30], [0])

    labels = -tf.ones([1, 10]), tf.ones([1, 2])

    @tf.function
    def gradients(E, G):
        with tf.GradientTape() as tape:
            outputs = G([E(tf.ones([1, 16, 16, 3])), *labels])
            loss = fast_ops.total_variation(outputs)
        return tape.gradient(loss, E.trainable_weights)

    gradients(model.E, model.G)
    handles = [weakref.ref(network.weights[0].value.handle) for network in (model.E, model.G)]
    del model, gradients
    gc.collect()
    assert [handle() for handle in handles] == [None, None]
