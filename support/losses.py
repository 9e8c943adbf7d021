"""The weighted losses of E and G by name, and the losses and networks that go beyond the paper.

To add a loss, write its function and add it at the end of TERMS: the training step, `--loss_weights`, config.json, the
status line and the help (docs/flags.md) read that table, and the logs contain every loss that the function returns. A
network that the loss trains goes at the end of AUXILIARY_NETWORKS. Order matters: weights without names are listed in
the order of TERMS, and optimizers are numbered in that of the networks. TensorFlow is imported within the functions,
because the command line reads the table before it loads TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from support import InputError

C_Z_LENGTHS = (256, 256)  # hidden layers of C_z
C_IMG_CHANNELS, C_IMG_KERNEL = (24, 48, 96, 192), 5  # convolutions of C_img
C_IMG_MOMENTUM = 0.99  # of its batch norm: its moving statistics are used on generated images from the first steps on
OUTPUT_STDDEV = 0.002  # of the initial weights of C_img's outputs: at first all classes are about equally likely
DROPOUT = 0.3
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
# the largest changes of an augmented image: shift relative to its side, and of pixels in [-1, 1]
SHIFT, BRIGHTNESS, CONTRAST, NOISE = 1 / 16, 0.2, 0.25, 0.1


class Step(NamedTuple):
    """The input of a loss beyond the paper, at one training step on a batch of N faces."""

    networks: Mapping  # keras.Model by name
    images: object  # float32 [N, S, S, C] in [-1, 1]
    ages: object  # one-hot labels in {-1, +1}, [N, bins]
    genders: object  # [N, 2]
    out: Mapping  # what `FaceAging.forward` returned
    seed: object  # int32 [2], the run's seed and the step; a second random loss must fold in a number of its own
    weights: Mapping  # the current weights by the names of TERMS, float32 scalars


class Term(NamedTuple):
    """A loss that E and G minimise, with a weight, beside the reconstruction loss.

    The paper's losses have no `compute`: they are always computed, by `paper_losses`. A term beyond the paper
    is computed only if it has a weight. `compute` takes a Step and returns float32 scalars by name, `loss` among them.
    """

    loss: str  # its name in losses.csv and tensorboard
    meaning: str  # for --help
    compute: Callable[[Step], dict] | None = None
    network: str = ""  # an auxiliary network that the term needs: a key of AUXILIARY_NETWORKS
    start: float = 0.0  # share of the planned epochs before which the weight is 0


class AuxiliaryNetwork(NamedTuple):
    """A network that is trained together with the paper's four, on the loss of its own name (`C_z_loss`)."""

    build: Callable  # takes Hyperparameters and returns the keras.Model
    rate: float  # its learning rate, relative to that of the paper's networks
    updates: int = 1  # a step, all on the same batch


def label_classifier(hyperparameters):
    """Build C_z, which reads age bin and gender from z: [N, Z] -> logits [N, bins] and [N, 2]."""
    import keras
    from keras import layers

    from support.fast_ops import fc

    z = x = keras.Input([hyperparameters.num_z_channels], name="z")
    for i, length in enumerate(C_Z_LENGTHS):
        x = layers.ReLU()(fc(x, length, f"C_z_fc{i}"))
    logits = fc(x, hyperparameters.num_categories, "C_z_age"), fc(x, 2, "C_z_gender")
    return keras.Model(z, [layers.Activation("linear", dtype="float32")(output) for output in logits], name="C_z")


def label_losses(step: Step) -> dict:
    """Return the losses that hide age and gender from z (Fader Networks: Lample et al., NeurIPS 2017).

    C_z minimises C_z_loss, its cross-entropy on age bin and gender. E minimises E_label_loss, the cross-entropy between
    the uniform distribution and C_z's prediction.
    """
    import tensorflow as tf

    logits = step.networks["C_z"](step.out["z"], training=True)
    return {
        "E_label_loss": -sum(tf.reduce_mean(tf.nn.log_softmax(output)) for output in logits),
        "C_z_loss": label_cross_entropy(logits, (step.ages, step.genders)),
    }


def label_cross_entropy(logits, labels):
    """Return the mean cross-entropy of age plus that of gender, a scalar.

    logits, labels: (ages, genders), [N, bins] and [N, 2], labels in {-1, +1}.
    """
    import tensorflow as tf

    # labels are in {-1, +1}, probabilities in {0, 1}; an unknown gender (0, 0) is 0.5 each
    errors = [
        tf.nn.softmax_cross_entropy_with_logits((label + 1) / 2, output)
        for label, output in zip(labels, logits, strict=True)
    ]
    return sum(map(tf.reduce_mean, errors))


def feature_loss(step: Step) -> dict:
    """Return the mean absolute difference of D_img's feature maps of images and reconstructions, summed over layers.

    Feature matching: Larsen et al., VAE/GAN, ICML 2016; Wang et al., pix2pixHD, CVPR 2018.
    """
    import tensorflow as tf

    pairs = zip(step.out["D_input_maps"], step.out["D_G_maps"], strict=True)
    return {"G_feature_loss": sum(tf.reduce_mean(tf.cast(tf.abs(x - y), tf.float32)) for x, y in pairs)}


def image_classifier(hyperparameters):
    """Build C_img: [luma [N, S, S, 1], factors of features [N, F]] -> logits [N, bins] and [N, 2].

    The second input multiplies the features of the last convolution: by 1, or by the dropout that `SharedRandom` draws.
    """
    import keras
    import tensorflow as tf
    from keras import layers

    from support.fast_ops import BatchNormalization

    shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    luma = x = keras.Input([hyperparameters.size_image, hyperparameters.size_image, 1], name="luma")
    for i, channels in enumerate(C_IMG_CHANNELS):
        # the batch norm after it adds a bias
        convolution = {"use_bias": False, "kernel_initializer": keras.initializers.HeNormal(), "name": f"C_img_conv{i}"}
        x = layers.Conv2D(channels, C_IMG_KERNEL, 2, "same", **convolution)(x)
        norm = {"epsilon": 1e-3, "scale": False, "synchronized": shared, "name": f"C_img_bn{i}"}
        x = layers.LeakyReLU(negative_slope=0.2)(BatchNormalization(momentum=C_IMG_MOMENTUM, **norm)(x))
    x = layers.Flatten()(x)  # [N, S / 16 * S / 16 * 192]
    factors = keras.Input([x.shape[-1]], name="factors")
    x = layers.Multiply()([x, factors])
    initializer = keras.initializers.RandomNormal(stddev=OUTPUT_STDDEV)
    ages = layers.Dense(hyperparameters.num_categories, kernel_initializer=initializer, name="C_img_age")(x)
    genders = layers.Dense(2, kernel_initializer=initializer.clone(), name="C_img_gender")(x)
    logits = [layers.Activation("linear", dtype="float32")(output) for output in (ages, genders)]
    return keras.Model([luma, factors], logits, name="C_img")


class SharedRandom:
    """Random tensors [N, ...] that depend on a seed, and not on the number of devices.

    They are drawn for all replicas together, of which each takes the rows of its part of the batch. seed: integer [2];
    rows: N, the size of a replica's part.
    """

    def __init__(self, seed, rows):
        import tensorflow as tf

        self.random, self.seed, self.draws = tf.random, seed, 0
        context = tf.distribute.get_replica_context()
        self.first, self.rows = context.replica_id_in_sync_group * rows, rows
        self.all_rows = context.num_replicas_in_sync * rows

    def _draw(self, function, shape, **arguments):
        seed = self.random.experimental.stateless_fold_in(self.seed, self.draws)
        self.draws += 1
        return function([self.all_rows, *shape], seed, **arguments)[self.first : self.first + self.rows]

    def uniform(self, low: float, high: float, *shape: int):
        """Return float32 [N, *shape] within low and high."""
        return self._draw(self.random.stateless_uniform, shape, minval=low, maxval=high)

    def integers(self, low: int, high: int):
        """Return int32 [N] within low and high - 1."""
        return self._draw(self.random.stateless_uniform, (), minval=low, maxval=high, dtype="int32")

    def normal(self, *shape: int):
        """Return standard normal float32 [N, *shape]."""
        return self._draw(self.random.stateless_normal, shape)

    def dropout(self, count: int):
        """Return float32 [N, count]: 0 with the probability DROPOUT, else 1 / (1 - DROPOUT)."""
        import tensorflow as tf

        return tf.cast(self.uniform(0, 1, count) >= DROPOUT, tf.float32) / (1 - DROPOUT)


def augmented_luma(images, random: SharedRandom):
    """Return the luma [N, S, S, 1] of images [N, S, S, 1 or 3] in [-1, 1]: shifted, brighter or darker, with noise.

    Pixels outside an image are those of its border.
    """
    import tensorflow as tf

    size = images.shape[1]
    luma = images[..., 0] if images.shape[-1] == 1 else tf.reduce_sum(images * tf.constant(LUMA), axis=-1)
    largest = max(1, round(size * SHIFT))
    shifts = [random.integers(-largest, largest + 1)[:, tf.newaxis] for _ in range(2)]
    # row i of [N, S, S] is one-hot at i + the shift: TensorFlow's gradient of a gather is slower than these products
    down, right = (tf.one_hot(tf.clip_by_value(tf.range(size) + shift, 0, size - 1), size) for shift in shifts)
    shifted = tf.matmul(tf.matmul(down, luma), right, transpose_b=True)
    contrast, brightness = (
        random.uniform(1 - CONTRAST, 1 + CONTRAST, 1, 1),
        random.uniform(-BRIGHTNESS, BRIGHTNESS, 1, 1),
    )
    noise = random.uniform(0, NOISE, 1, 1) * random.normal(size, size)
    return (shifted * contrast + brightness + noise)[..., tf.newaxis]


def other_labels(ages, random: SharedRandom):
    """Return labels in {-1, +1}: ages [N, bins], each in another bin than in `ages`, and random genders [N, 2]."""
    import tensorflow as tf

    bins = ages.shape[-1]
    other = (tf.argmax(ages, axis=-1, output_type=tf.int32) + random.integers(1, bins)) % bins
    return tuple(tf.one_hot(index, count) * 2 - 1 for index, count in ((other, bins), (random.integers(0, 2), 2)))


def classifier_losses(step: Step) -> dict:
    """Return the losses that make G's images show the age and gender of their labels.

    C_img minimises C_img_loss, its cross-entropy on augmented images of the batch. E and G minimise G_class_loss, that
    of G's images of the same z with other labels (AC-GAN: Odena et al., ICML 2017; IPCGAN: Wang et al., CVPR 2018).
    C_img classifies the luma: from colours, G learns patches of colour that no face has.
    """
    import tensorflow as tf

    C_img, G, z = step.networks["C_img"], step.networks["G"], step.out["z"]
    rows = z.shape[0] or tf.shape(z)[0]
    random = SharedRandom(step.seed, rows)
    features = C_img.inputs[1].shape[-1]
    logits = C_img([augmented_luma(step.images, random), random.dropout(features)], training=True)

    def generated_loss():
        labels = other_labels(step.ages, random)
        luma = augmented_luma(G([z, *labels], training=True), random)
        return label_cross_entropy(C_img([luma, tf.ones([rows, features])], training=False), labels)

    return {
        # before the term's start its weight is 0, and the pass through G is saved
        "G_class_loss": tf.cond(step.weights["classifier"] > 0, generated_loss, lambda: tf.constant(0.0)),
        "C_img_loss": label_cross_entropy(logits, (step.ages, step.genders)),
    }


TERMS = {
    "G_img": Term("G_img_loss", "D_img classifies generated images as real"),
    "E_z": Term("E_z_loss", "D_z classifies z as drawn from the prior"),
    "tv": Term("tv_loss", "total variation of generated images"),
    "label": Term("E_label_loss", "z hides age and gender from a classifier", label_losses, "C_z"),
    "feature": Term("G_feature_loss", "generated and real images match in D_img's feature maps", feature_loss),
    "classifier": Term(
        "G_class_loss", "a classifier predicts from images the labels given to G", classifier_losses, "C_img", 0.5
    ),
}
AUXILIARY_NETWORKS = {
    "C_z": AuxiliaryNetwork(label_classifier, rate=5, updates=5),
    "C_img": AuxiliaryNetwork(image_classifier, rate=2.5),
}
PAPER_TERMS = tuple(name for name, term in TERMS.items() if not term.compute)
UNNAMED_COUNTS = 3, 5  # weights without names in an older config.json or on the command line, in the order of TERMS
PRESETS = {
    "released": {"G_img": 1e-4, "E_z": 0.0, "tv": 0.0},  # of the reference program's released code
    "default": {"G_img": 1e-4, "E_z": 1e-4, "tv": 1e-4},
    "section41": {"G_img": 0.01, "E_z": 0.01, "tv": 0.1},  # of the paper: 100 : 1 : 1 : 10, divided by 100
    # docs/experiments.md
    "aging": {"G_img": 3e-4, "E_z": 1e-4, "tv": 1e-4, "label": 2e-2, "feature": 0.3, "classifier": 5e-3},
}
OLD_PRESETS = {"2017": "default", "paper": "section41"}  # earlier names, still accepted


def complete_weights(
    weights: Mapping[str, float] | Sequence[float], defaults: Mapping[str, float] = PRESETS["default"]
) -> dict[str, float]:
    """Return the weights by name, in the order of TERMS: the paper's three, and the others that are not 0.

    weights: by name, the missing ones from `defaults`; or a list of three or five in the order of TERMS. Raises
    InputError for other names or numbers.
    """
    if not isinstance(weights, Mapping):
        if len(weights) not in UNNAMED_COUNTS:
            raise InputError(
                f"{len(weights)} weights without names: give {' or '.join(map(str, UNNAMED_COUNTS))}, or names"
            )
        weights = dict(zip(TERMS, weights, strict=False))
        defaults = {}
    if unknown := weights.keys() - TERMS.keys():
        raise InputError(f"no loss is named {min(unknown)}: the names are {', '.join(TERMS)}")
    if not all(0 <= weight < float("inf") for weight in weights.values()):
        raise InputError("loss weights must be numbers from 0 up")
    weights = {**defaults, **weights}
    return {name: weights.get(name, 0.0) for name in TERMS if name in PAPER_TERMS or weights.get(name)}


def networks_of(weights: Mapping[str, float]) -> list[str]:
    """Return the names of the auxiliary networks that the terms of these weights need."""
    return [TERMS[name].network for name in weights if TERMS[name].network]
