"""Fully connected layer, pixel scaling, and faster equivalents of Keras layers, optimizers and the total variation.

`Conv2D`, `Conv2DTranspose`, `BatchNormalization`, `Adam` and `Muon` compute the same as Keras' classes of those names
(Muon also for convolution kernels); tests/test_layers.py and tests/test_muon.py compare them. With them a step takes
half the time on a CPU (docs/performance.md). Keras' own layers and Adam can be used instead: weights, their names and
checkpoints stay the same.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import record

STDDEV = 0.02  # standard deviation of the initial weights of the paper's networks and of C_z
# Widths of feature maps in pixels, measured in docs/performance.md.
SMALL_MAP = 8  # up to 8 x 8 outputs the kernel's gradient is a matrix product, and the input's gradient runs in 3-D
SMALLEST_MAP = 4  # up to 4 x 4 outputs the convolution itself and the input's gradient are matrix products too


@keras.saving.register_keras_serializable("FaceAging")
class Conv2D(layers.Conv2D):
    """Keras' convolution, in which small feature maps of stride 2 are convolved by matrix products on a CPU."""

    def convolution_op(self, inputs, kernel):
        _, height, width, _ = inputs.shape
        if height == width == 1 and inputs.dtype == tf.bfloat16 and _on_cpu():
            # TensorFlow 2.21 leaves most of the kernel's gradient uninitialised. A single pixel is multiplied by the
            # middle of the kernel only, so the convolution is a matrix product.
            middle = (kernel.shape[0] - 1) // 2
            return inputs @ tf.convert_to_tensor(kernel)[middle, middle]
        if height == width and height % 2 == 0 and self.strides[0] == 2 and _is_small(height // 2):
            return _small_convolution(inputs, tf.convert_to_tensor(kernel))
        return super().convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("FaceAging")
class Conv2DTranspose(layers.Conv2DTranspose):
    """Keras' transposed convolution, in which small feature maps are matrix products, and bias and ReLU one pass.

    For padding "same" and a bias, which ops.deconv2d asks for; dilation and output padding are ignored.
    """

    def call(self, inputs):
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        _, height, width, _ = inputs.shape
        if height == width and self.strides[0] == 2 and _is_small(height):
            outputs = _small_transposed_convolution(inputs, kernel)
        else:
            shape = [tf.shape(inputs)[0], self.strides[0] * height, self.strides[0] * width, self.filters]
            outputs = tf.nn.conv2d_transpose(inputs, kernel, shape, self.strides)
        add_bias = _add_bias if _on_cpu() else tf.nn.bias_add
        return self.activation(add_bias(outputs, bias))


@keras.saving.register_keras_serializable("FaceAging")
class BatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation without a scale, which normalises feature maps by one fused operation in training.

    Masks are ignored.
    """

    def call(self, inputs, training=None, mask=None):
        if not training or self.synchronized or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=tf.ones_like(self.beta), offset=self.beta, mean=[], variance=[], epsilon=self.epsilon
        )
        # the operation returns the unbiased variance (n - 1); Keras and the reference program keep the biased one (n)
        samples = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance * (samples - 1) / samples)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        return outputs


def fc(x, num_output_length: int, name: str = "fc"):
    """Fully connected layer, [batch, n] to [batch, num_output_length]."""
    initializer = keras.initializers.RandomNormal(stddev=STDDEV)
    return layers.Dense(num_output_length, kernel_initializer=initializer, name=name)(x)


def normalize(images):
    """Convert pixels in [0, 255], of any type, to the networks' range: float32 in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def denormalize(images):
    """Convert the networks' range [-1, 1] to uint8 pixels, rounded to the nearest."""
    return tf.cast(tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5), tf.uint8)


class Adam(keras.optimizers.Adam):
    """Keras' Adam, the same formula, in which each variable is updated by one fused operation."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        state = self._momentums[index], self._velocities[index]
        _apply_adam(self, variable, state, gradient, learning_rate, self.beta_1, self.beta_2)


class Muon(keras.optimizers.Muon):
    """Keras' Muon without weight decay, for the kernels of convolutions too; Adam for biases.

    A kernel [k, k, in, out] is the matrix [k * k * in, out], one [k, k, out, in] of a transposed convolution is
    [k * k * out, in]. The update of a matrix is its Nesterov momentum, orthogonalised, times the learning rate times
    0.2 * sqrt(the larger side) (Jordan et al., 2024; Liu et al., "Muon is scalable for LLM training", 2025).

    The result is that of Keras' Newton-Schulz iteration. That iteration multiplies polynomials of X X^T by X; here the
    polynomials are multiplied first, as matrices of the shorter side, and X once at the end (Amsel et al., "The Polar
    Express", 2025, on rectangular matrices). For the longest kernels that is a third of the work.

    With bfloat16 the two products with the long matrix are computed in that type. Those of square matrices always use
    float32: in bfloat16 the rounding errors of the smallest eigenvalues would grow with each iteration.
    """

    def __init__(self, learning_rate=6e-4, beta_1=0.5, epsilon=1e-8, bfloat16=False, name="muon"):
        super().__init__(learning_rate, adam_beta_1=beta_1, epsilon=epsilon, weight_decay=None, name=name)
        self.adam_weight_decay = None
        self.long_dtype = tf.bfloat16 if bfloat16 else tf.float32

    def _should_use_adamw(self, variable):
        return len(variable.shape) < 2

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        momentum, velocity = self.momentums[index], self.adam_velocities[index]
        if velocity is not None:
            state = momentum, velocity
            _apply_adam(self, variable, state, gradient, learning_rate, self.adam_beta_1, self.adam_beta_2)
            return
        value = self.momentum * momentum.value + gradient
        self.assign(momentum, value)
        direction = tf.reshape(gradient + self.momentum * value, [-1, variable.shape[-1]])
        update = self.lr_adjust(learning_rate * self.zeropower_via_newtonschulz5(direction, self.ns_steps))
        self.assign_sub(variable, tf.reshape(update, variable.shape))

    def zeropower_via_newtonschulz5(self, x, steps: int):
        """Return x [rows, columns] with its singular values brought near 1, float32."""
        tall = x.shape[0] > x.shape[1]
        norm = tf.norm(x) + 1e-7
        x = tf.cast(x, self.long_dtype)
        gram = tf.cast(tf.matmul(x, x, transpose_a=tall, transpose_b=not tall), tf.float32) / norm**2
        product = tf.eye(gram.shape[0])
        for step in range(steps):
            # the polynomial of Keras' step, which with symmetric matrices commutes with all others
            factor = self.muon_a * tf.eye(gram.shape[0]) + self.muon_b * gram + self.muon_c * gram @ gram
            product = product @ factor if step else factor
            if step < steps - 1:
                gram = factor @ gram @ factor
        product = tf.cast(product / norm, self.long_dtype)
        return tf.cast(x @ product if tall else product @ x, tf.float32)


def _apply_adam(optimizer, variable, state, gradient, learning_rate, beta_1: float, beta_2: float) -> None:
    momentum, velocity = state
    steps = tf.cast(optimizer.iterations + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.value.handle,
        v=velocity.value.handle,
        beta1_power=beta_1**steps,
        beta2_power=beta_2**steps,
        lr=learning_rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=optimizer.epsilon,
        grad=gradient,
    )


def custom_gradient(function):
    """Decorate a function of tensors that returns (result, gradient), as tf.custom_gradient does, without its leak.

    tf.custom_gradient adds each gradient that it traces to a table that is never cleared. The gradient refers to its
    graph, and so to the weights in it: every model that was loaded and used would keep 75 MB.
    """

    @functools.wraps(function)
    def call(*inputs):
        inputs = [tf.convert_to_tensor(x) for x in inputs]
        with record.stop_recording():
            result, gradient = function(*inputs)
            # as in TensorFlow's decorator: without it the graph optimizer would fuse other operations
            outputs = tf.identity_n([result, *inputs])
        record.record_operation(
            function.__name__, outputs, [result, *inputs], lambda upstream, *_: [None, *gradient(upstream)]
        )
        return outputs[0]

    return call


@custom_gradient
def total_variation(images):
    """Return the mean over images, float [N, H, W, C], of half the squared differences between neighbouring pixels.

    Those between rows are divided by the height, those between columns by the width, as in the reference program.
    """
    batch, (height, width) = tf.cast(tf.shape(images)[0], images.dtype), images.shape[1:3]
    rows = images[:, 1:] - images[:, :-1]
    columns = images[:, :, 1:] - images[:, :, :-1]

    def to_neighbours(differences, axis: int):
        before, after = np.zeros([2, 4, 2], int)
        before[axis, 0] = after[axis, 1] = 1
        # padding twice takes 0.04 s less of a step than padding once and slicing
        return tf.pad(differences, before) - tf.pad(differences, after)

    def gradient(upstream):
        # TensorFlow's own gradient would keep five tensors as large as the images until the discriminator is through
        return [upstream / batch * (to_neighbours(rows, 1) / height + to_neighbours(columns, 2) / width)]

    # l2_loss is half the sum of squares
    return (tf.nn.l2_loss(rows) / height + tf.nn.l2_loss(columns) / width) / batch, gradient


def _on_cpu() -> bool:
    return not tf.config.list_logical_devices("GPU")


def _is_small(side: int) -> bool:
    return side <= SMALL_MAP and _on_cpu()


@custom_gradient
def _add_bias(inputs, bias):
    _, _, width, channels = inputs.shape
    if channels % 16:
        biased = tf.nn.bias_add(inputs, bias)
    else:
        # Add the bias as a fused batch norm with mean 0 and variance 1: TensorFlow fuses the ReLU that follows into it,
        # and it is fast for multiples of 16 channels.
        ones = tf.ones_like(bias, tf.float32)
        biased, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ones,
            offset=tf.cast(bias, tf.float32),
            mean=0 * ones,
            variance=ones / 2,
            epsilon=0.5,
            is_training=False,
        )

    def gradient(upstream):
        # The bias's gradient sums over batch and pixels: a row of ones times groups of 8 pixels is one matrix product,
        # three times as fast as TensorFlow's BiasAddGrad.
        pixels = math.gcd(width, 8)
        rows = tf.reshape(upstream, [-1, pixels * channels])
        sums = tf.matmul(tf.ones([1, tf.shape(rows)[0]], rows.dtype), rows)
        return upstream, tf.reduce_sum(tf.reshape(sums, [pixels, channels]), axis=0)

    return biased, gradient


# Convolutions of stride 2 from inputs [N, 2m, 2m, C] to outputs [N, m, m, D] by a kernel [k, k, C, D]. For small
# feature maps oneDNN uses a fraction of the CPU. im2col (each output pixel's window as a row) and one matrix product
# use all of it.


@custom_gradient
def _small_convolution(inputs, kernel):
    def gradient(upstream):
        # without this dependency the gather runs already in the forward pass, and its result is held (0.18 GB)
        with tf.control_dependencies([upstream]):
            late = tf.identity(inputs)
        return _input_gradient(upstream, kernel), _kernel_gradient(late, upstream, kernel.shape)

    return _convolution(inputs, kernel), gradient


@custom_gradient
def _small_transposed_convolution(inputs, kernel):
    # the transpose of a convolution is that convolution's input gradient, and the other way round
    def gradient(upstream):
        return _convolution(upstream, kernel), _kernel_gradient(upstream, inputs, kernel.shape)

    return _input_gradient(inputs, kernel), gradient


def _convolution(inputs, kernel):
    k, _, _, d = kernel.shape
    side = inputs.shape[1] // 2
    if side > SMALLEST_MAP:
        return tf.nn.conv2d(inputs, kernel, 2, "SAME")
    windows, weights = _im2col(inputs, _im2col_indices(side, k)), tf.reshape(kernel, [-1, d])
    # the product is computed transposed: oneDNN takes four thirds of the time for windows @ weights
    product = tf.transpose(tf.matmul(weights, windows, transpose_a=True, transpose_b=True))
    return tf.reshape(product, [-1, side, side, d])


def _input_gradient(outputs, kernel):
    """Return the gradient with respect to the input: each output pixel's value is added to its window, weighted."""
    k, _, c, d = kernel.shape
    side = outputs.shape[1]
    if side > SMALLEST_MAP:
        # in 3-D with the batch as the last axis: oneDNN is fast along a long axis, and those of a small map are short
        volume = tf.transpose(outputs, [1, 2, 0, 3])[tf.newaxis]
        shape = [1, 2 * side, 2 * side, tf.shape(volume)[3], c]
        inputs = tf.nn.conv3d_transpose(volume, kernel[:, :, tf.newaxis], shape, [2, 2, 1])
        return tf.transpose(inputs[0], [2, 0, 1, 3])
    windows = tf.matmul(tf.reshape(outputs, [-1, d]), tf.reshape(kernel, [-1, d]), transpose_b=True)
    indices = _col2im_indices(side, k)
    terms = _im2col(tf.reshape(windows, [-1, side**2, k**2, c]), indices)
    return tf.reduce_sum(tf.reshape(terms, [-1, 2 * side, 2 * side, indices.shape[1], c]), axis=3)


def _kernel_gradient(inputs, outputs, shape):
    """Return the gradient with respect to a kernel of this shape: im2col(inputs)^T @ outputs."""
    windows = _im2col(inputs, _im2col_indices(outputs.shape[1], shape[0]))
    return tf.reshape(tf.matmul(windows, tf.reshape(outputs, [-1, shape[3]]), transpose_a=True), shape)


def _im2col(inputs, indices: np.ndarray):
    """Gather from inputs [N, h, w, C] the pixels at indices, int [P, T] in 0 ... h * w: [N * P, T * C].

    Pixels are numbered row by row; the index h * w stands for zeros.
    """
    _, height, width, channels = inputs.shape
    flat = tf.pad(tf.reshape(inputs, [-1, height * width, channels]), [[0, 0], [0, 1], [0, 0]])
    return tf.reshape(tf.gather(flat, indices.ravel(), axis=1), [-1, indices.shape[1] * channels])


def _im2col_indices(side: int, k: int) -> np.ndarray:
    """Return the input pixels within the window of each output pixel, int [side * side, k * k]."""
    rows = 2 * np.arange(side)[:, np.newaxis] - (k - 2) // 2 + np.arange(k)  # [side, k]
    indices = rows[:, None, :, None] * 2 * side + rows[:, None, :]  # [side, side, k, k]
    inside = (rows >= 0) & (rows < 2 * side)
    indices[~(inside[:, None, :, None] & inside[:, None, :])] = (2 * side) ** 2
    return indices.reshape(side**2, k**2)


def _col2im_indices(side: int, k: int) -> np.ndarray:
    """Return, for each input pixel, the elements of im2col that contain it, int [4 * side * side, T].

    T is the number of the most; the others are padded with the index of zeros.
    """
    windows = _im2col_indices(side, k).ravel()
    found = [np.flatnonzero(windows == pixel) for pixel in range((2 * side) ** 2)]
    most = max(map(len, found))
    return np.array([np.pad(indices, (0, most - len(indices)), constant_values=len(windows)) for indices in found])
