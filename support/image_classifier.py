"""C_img, the classifier of age and gender on images, and the losses that it computes."""

import keras
import tensorflow as tf
from keras import layers

from support.fast_ops import BatchNormalization

OUTPUT_STDDEV = 0.002  # of the initial weights of the outputs: all classes are about equally likely at first
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
C_IMG_CHANNELS = (24, 48, 96, 192)
C_IMG_KERNEL = 5
C_IMG_MOMENTUM = 0.99  # of batch norm: C_img judges generated images by its moving statistics from the first steps on
DROPOUT = 0.3
SHIFT = 1 / 16  # of the image's side; the largest shift of an augmented image, in pixels of it
BRIGHTNESS, CONTRAST, NOISE = 0.2, 0.25, 0.1  # largest changes; pixels are in [-1, 1]


def image_classifier(hyperparameters) -> keras.Model:
    """Build C_img: [luma [N, S, S, 1], kept features [N, F]] -> logits [N, bins] and [N, 2].

    The second input multiplies the features of the last convolution: ones, or what `keep_features` returns. So dropout
    needs no random generator in the network, and is the same on any number of devices.
    """
    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    luma = x = keras.Input([hyperparameters.size_image, hyperparameters.size_image, 1], name="luma")
    for i, channels in enumerate(C_IMG_CHANNELS):
        x = layers.Conv2D(
            channels,
            C_IMG_KERNEL,
            2,
            "same",
            use_bias=False,  # the batch norm behind it adds one
            kernel_initializer=keras.initializers.HeNormal(),
            name=f"C_img_conv{i}",
        )(x)
        x = BatchNormalization(
            momentum=C_IMG_MOMENTUM, epsilon=1e-3, scale=False, synchronized=shared, name=f"C_img_bn{i}"
        )(x)
        x = layers.LeakyReLU(negative_slope=0.2)(x)  # [N, S / 2, S / 2, 24] ... [N, S / 16, S / 16, 192]
    x = layers.Flatten()(x)
    keep = keras.Input([x.shape[-1]], name="keep")
    x = layers.Multiply()([x, keep])
    logits = [
        layers.Dense(
            length, kernel_initializer=keras.initializers.RandomNormal(stddev=OUTPUT_STDDEV), name=f"C_img_{name}"
        )(x)
        for name, length in (("age", hyperparameters.num_categories), ("gender", 2))
    ]
    return keras.Model(
        [luma, keep], [layers.Activation("linear", dtype="float32")(one) for one in logits], name="C_img"
    )


class SharedRandom:
    """Random tensors that are a function of a seed alone, of which each replica gets the rows of its part of a batch.

    seed: integer [2]; rows: the length N of this replica's part.
    """

    def __init__(self, seed, rows: int):
        self.seed, self.rows, self.drawn = seed, rows, 0
        context = tf.distribute.get_replica_context()
        self.first = context.replica_id_in_sync_group * rows
        self.all_rows = context.num_replicas_in_sync * rows

    def draw(self, function, shape=(), **arguments):
        """Return function(shape, seed, **arguments), a tf.random.stateless_* function, for these rows: [N, *shape]."""
        seed = tf.random.experimental.stateless_fold_in(self.seed, self.drawn)
        self.drawn += 1
        return function([self.all_rows, *shape], seed, **arguments)[self.first : self.first + self.rows]

    def uniform(self, low: float, high: float, shape=()):
        return self.draw(tf.random.stateless_uniform, shape, minval=low, maxval=high)

    def integers(self, low: int, high: int, shape=()):
        """Return integers from low to high - 1."""
        return self.draw(tf.random.stateless_uniform, shape, minval=low, maxval=high, dtype=tf.int32)


def luma_of(images):
    """Return the luma [N, S, S, 1] of images [N, S, S, 1 or 3], in [-1, 1] as they are."""
    if images.shape[-1] == 1:
        return images
    return tf.reduce_sum(images * tf.constant(LUMA), axis=-1, keepdims=True)


def augment(images, random: SharedRandom):
    """Shift images [N, S, S, 1] in [-1, 1], change brightness and contrast, and add noise.

    What lies outside an image is repeated from its border.
    """
    size = images.shape[1]
    largest = max(1, round(size * SHIFT))
    down, right = (_shift_matrices(random.integers(-largest, largest + 1), size) for _ in range(2))
    contrast = random.uniform(1 - CONTRAST, 1 + CONTRAST, [1, 1, 1])
    brightness = random.uniform(-BRIGHTNESS, BRIGHTNESS, [1, 1, 1])
    noise = random.uniform(0, NOISE, [1, 1, 1]) * random.draw(tf.random.stateless_normal, [size, size, 1])
    # a product with one-hot matrices: TensorFlow's gradient of a gather is slow
    shifted = tf.matmul(tf.matmul(down, images[..., 0]), right, transpose_b=True)[..., tf.newaxis]
    return shifted * contrast + brightness + noise


def _shift_matrices(shifts, size: int):
    """Return [N, S, S]: row i of each is one-hot at i + its shift, int [N], within 0 ... S - 1."""
    return tf.one_hot(tf.clip_by_value(tf.range(size) + shifts[:, tf.newaxis], 0, size - 1), size)


def keep_features(count: int, random: SharedRandom):
    """Return dropout as factors [N, count] of features: 0 with the probability DROPOUT, else 1 / (1 - DROPOUT)."""
    return tf.cast(random.uniform(0, 1, [count]) >= DROPOUT, tf.float32) / (1 - DROPOUT)


def other_labels(ages, random: SharedRandom):
    """Return labels in {-1, +1}, ages [N, bins] in another bin than `ages` and genders [N, 2] at random."""
    bins = ages.shape[-1]
    other = (tf.argmax(ages, axis=-1, output_type=tf.int32) + random.integers(1, max(2, bins))) % bins
    return tuple(tf.one_hot(index, count) * 2 - 1 for index, count in ((other, bins), (random.integers(0, 2), 2)))


def label_cross_entropy(logits, labels):
    """Return the mean cross-entropy of age plus that of gender, a scalar.

    logits, labels: (ages, genders), [N, bins] and [N, 2], labels in {-1, +1}; an unknown gender (0, 0) is 0.5 each.
    """
    errors = [
        tf.nn.softmax_cross_entropy_with_logits((label + 1) / 2, one) for label, one in zip(labels, logits, strict=True)
    ]
    return sum(map(tf.reduce_mean, errors))


def classifier_losses(step) -> dict:
    """Return the losses that have generated faces classified as the age and gender asked for.

    C_img minimises C_img_loss, its cross-entropy on augmented images of the batch. E and G minimise G_class_loss, that
    on their images of the same z at another age bin and a random gender (AC-GAN: Odena et al., ICML 2017; IPCGAN: Wang
    et al., CVPR 2018). C_img sees luma only: in colour G makes patches that no face has.
    """
    C_img, G, z = step.networks["C_img"], step.networks["G"], step.out["z"]
    images = tf.convert_to_tensor(step.images)
    random = SharedRandom(step.seed, images.shape[0] or tf.shape(images)[0])
    features = C_img.inputs[1].shape[-1]
    logits = C_img([augment(luma_of(images), random), keep_features(features, random)], training=True)
    labels = other_labels(step.ages, random)
    generated = G([z, *labels], training=True)
    judged = C_img([augment(luma_of(generated), random), tf.ones([tf.shape(z)[0], features])], training=False)
    return {
        "G_class_loss": label_cross_entropy(judged, labels),
        "C_img_loss": label_cross_entropy(logits, (step.ages, step.genders)),
    }
