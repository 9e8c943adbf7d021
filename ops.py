"""What the networks are built from, the losses, and how an image becomes numbers and back.

The layers are the reference program's: 'SAME' padding, convolution weights from a truncated normal(0, 0.02), weights of
transposed convolutions and fully connected layers from a normal(0, 0.02), biases zero. Each function takes and returns
a Keras tensor, so that a network reads one line per layer.
"""

from collections.abc import Sequence
from pathlib import Path

import support  # noqa: F401, first: it sets what TensorFlow and Keras read from the environment

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from support import fast_ops
from support.images import fit_image, read_image
from support.pictures import IN_A_ROW, grid

STDDEV = 0.02  # the standard deviation of every initial weight
C_Z_LENGTHS = (256, 256)  # hidden layers of the label classifier on z


def conv2d(x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, name: str = "conv2d"):
    """Convolve [batch, h, w, c] to [batch, h / stride, w / stride, num_output_channels]."""
    return fast_ops.Conv2D(
        num_output_channels,
        size_kernel,
        stride,
        padding="same",
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=STDDEV),
        name=name,
    )(x)


def deconv2d(
    x, num_output_channels: int, size_kernel: int = 5, stride: int = 2, activation=None, name: str = "deconv2d"
):
    """Transposed convolution of [batch, h, w, c] to [batch, h * stride, w * stride, num_output_channels]."""
    return fast_ops.Conv2DTranspose(
        num_output_channels,
        size_kernel,
        stride,
        padding="same",
        activation=activation,
        kernel_initializer=keras.initializers.RandomNormal(stddev=STDDEV),
        name=name,
    )(x)


def fc(x, num_output_length: int, name: str = "fc"):
    """Fully connected layer, [batch, n] to [batch, num_output_length]."""
    initializer = keras.initializers.RandomNormal(stddev=STDDEV)
    return layers.Dense(num_output_length, kernel_initializer=initializer, name=name)(x)


def lrelu(x, leak: float = 0.2):
    """Leaky ReLU: x where positive, leak * x elsewhere."""
    return layers.LeakyReLU(negative_slope=leak)(x)


def batch_norm(x, name: str = "batch_norm"):
    """Batch normalisation without a scale; its statistics are those of the whole batch on however many devices."""
    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return fast_ops.BatchNormalization(momentum=0.999, epsilon=1e-3, scale=False, synchronized=shared, name=name)(x)


def concat_label(x, label, duplicate: int = 1):
    """Append a label [batch, k], `duplicate` times, to x [batch, n], or as constant maps to x [batch, h, w, c]."""
    label = keras.ops.cast(keras.ops.tile(label, [1, duplicate]), x.dtype)  # [batch, k * duplicate]
    if len(x.shape) == 4:
        _, height, width, _ = x.shape
        label = keras.ops.tile(label[:, None, None, :], [1, height, width, 1])
    return keras.ops.concatenate([x, label], axis=-1)


def float32_output(x, activation: str = "linear"):
    """The activation of a network's last layer, computed and returned in float32 whatever precision runs inside."""
    return layers.Activation(activation, dtype="float32")(x)


def paper_losses(images, out: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The paper's losses (equations 3 to 6) by the reference program's names, float32 scalars, means over the batch.

    images: [N, S, S, C] in [-1, 1], the batch x; out: what `FaceAging.forward` returned for it.
    """

    def cross_entropy(logits, target):
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), target), logits))

    return {
        # the reconstruction alone: where the paper has L2 (equation 4), the reference program and we have L1
        "EG_loss": tf.reduce_mean(tf.abs(images - out["G"])),
        # what E and G want of the discriminators: a z like the prior's, an image like a real one
        "E_z_loss": cross_entropy(out["D_z_logits"], 1.0),
        "G_img_loss": cross_entropy(out["D_G_logits"], 1.0),
        # what the discriminators want: to tell z of the prior from that of E, and real images from generated ones
        "D_z_loss_prior": cross_entropy(out["D_z_prior_logits"], 1.0),
        "D_z_loss_z": cross_entropy(out["D_z_logits"], 0.0),
        "D_img_loss_input": cross_entropy(out["D_input_logits"], 1.0),
        "D_img_loss_G": cross_entropy(out["D_G_logits"], 0.0),
        "tv_loss": fast_ops.total_variation(out["G"]),
    }


def objectives(losses: dict, loss_weights: dict) -> dict:
    """What each network minimises, by the names of `FaceAging.variables`.

    losses: by name, tensors or numbers; loss_weights: those of WEIGHTED_LOSSES, by name.
    """
    minimised = {
        "EG": losses["EG_loss"] + sum(weight * losses[name] for name, weight in loss_weights.items()),
        "D_z": losses["D_z_loss_prior"] + losses["D_z_loss_z"],
        "D_img": losses["D_img_loss_input"] + losses["D_img_loss_G"],
    }
    if "C_z_loss" in losses:
        minimised["C_z"] = losses["C_z_loss"]
    return minimised


def loss_line(losses: dict[str, float]) -> str:
    """The losses in a line, each discriminator's two as the sum that it minimises."""
    minimised = objectives(losses, {})
    shown = {name: losses[f"{name}_loss"] for name in ("EG", "E_z", "G_img", "tv")}
    shown |= {"D_z": minimised["D_z"], "D_img": minimised["D_img"]}
    optional = {"label": "E_label_loss", "feature": "G_feature_loss", "C_z": "C_z_loss"}
    shown |= {name: losses[loss] for name, loss in optional.items() if loss in losses}
    return " ".join(f"{name} {loss:.3f}" for name, loss in shown.items())


# What goes beyond the paper: labels hidden from z, and features of D_img matched.


def label_classifier(num_z_channels: int, num_categories: int) -> keras.Model:
    """The network C_z, which reads age bin and gender from z: logits [batch, num_categories] and [batch, 2]."""
    z = x = keras.Input([num_z_channels], name="z")
    for i, length in enumerate(C_Z_LENGTHS):
        x = layers.ReLU()(fc(x, length, name=f"C_z_fc{i}"))
    ages, genders = fc(x, num_categories, name="C_z_age"), fc(x, 2, name="C_z_gender")
    return keras.Model(z, [float32_output(ages), float32_output(genders)], name="C_z")


def feature_maps(D_img: keras.Model) -> keras.Model:
    """The layers of D_img as a network that returns [logits, *the four feature maps behind their ReLU]."""
    maps = [layer.output for layer in D_img.layers if isinstance(layer, layers.ReLU)]
    return keras.Model(D_img.inputs, [D_img.output, *maps])


def label_losses(logits, ages, genders) -> dict[str, tf.Tensor]:
    """What C_z minimises, its cross-entropy on age bin and gender; and what E does, to leave it undecided.

    logits: those of C_z, [N, num_categories] and [N, 2]; ages, genders: the labels, in {-1, +1}. E's loss is the
    cross-entropy between "all classes are equally likely" and what C_z says. A latent code that hides the labels is the
    idea of Fader Networks (Lample et al., NeurIPS 2017).
    """
    # labels are in {-1, +1}, probabilities in {0, 1}; a gender that is not known is as likely one as the other
    errors = [
        tf.nn.softmax_cross_entropy_with_logits((label + 1) / 2, one)
        for label, one in zip((ages, genders), logits, strict=True)
    ]
    return {
        "E_label_loss": -sum(tf.reduce_mean(tf.nn.log_softmax(one)) for one in logits),
        "C_z_loss": sum(map(tf.reduce_mean, errors)),
    }


def feature_loss(real: Sequence[tf.Tensor], generated: Sequence[tf.Tensor]) -> tf.Tensor:
    """The mean absolute difference of two batches' feature maps, [N, h, w, c] each, summed over the layers.

    Feature matching: Larsen et al., VAE/GAN, ICML 2016; Wang et al., pix2pixHD, CVPR 2018.
    """
    pairs = zip(real, generated, strict=True)
    return sum(tf.reduce_mean(tf.cast(tf.abs(x - y), tf.float32)) for x, y in pairs)


def normalize(images):
    """Pixels in [0, 255], of any type, to the networks' range: float32 in [-1, 1]."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0


def denormalize(images):
    """The networks' float range [-1, 1] to uint8 pixels, rounded to the nearest."""
    return tf.cast(tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5), tf.uint8)


def load_image(path: str | Path, size_image: int, channels: int) -> np.ndarray:
    """Read an image as uint8 [size_image, size_image, channels], channels 1 (grey) or 3 (RGB).

    Its central square is taken. Raises BadPicture, an InputError, where it cannot be read.
    """
    return fit_image(read_image(path), size_image, channels)


def batch_grid(images, columns: int = IN_A_ROW) -> np.ndarray:
    """Returns images, float [N, S, S, C] in [-1, 1], row by row as one grid without gaps: uint8 [H, W, C]."""
    return grid(denormalize(images).numpy(), columns)
