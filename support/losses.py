"""The weighted losses of E and G by name, and the losses and networks that go beyond the paper.

To add a loss, write its function and add it to TERMS: the training step, `--loss_weights`, config.json, losses.csv,
tensorboard, the status line and the help read that table. TensorFlow is imported within the functions, because the
command line reads the table before it loads TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from support.errors import InputError

STDDEV = 0.02  # the standard deviation of every initial weight, as in the paper's networks
C_Z_LENGTHS = (256, 256)  # hidden layers of C_z


class Step(NamedTuple):
    """What a loss beyond the paper is computed from, at one training step on a batch of N faces."""

    networks: Mapping  # keras.Model by name
    images: object  # float32 [N, S, S, C] in [-1, 1]
    ages: object  # one-hot labels in {-1, +1}, [N, bins]
    genders: object  # [N, 2]
    out: Mapping  # what `FaceAging.forward` returned
    seed: object  # int32 [2]: the run's seed and the step, for stateless random operations


class Term(NamedTuple):
    """A loss that E and G minimise, with a weight, beside the reconstruction loss.

    The paper's losses have no `compute`: they are always computed, by `FaceAging.paper_losses`. A term beyond the paper
    is computed only if its weight is not 0. `compute` takes a Step and returns its losses, float32 scalars by name.
    """

    loss: str  # its name in losses.csv and tensorboard
    meaning: str  # for --help
    compute: Callable[[Step], dict] | None = None
    network: str = ""  # an auxiliary network that the term needs: a key of AUXILIARY_NETWORKS


class AuxiliaryNetwork(NamedTuple):
    """A network that is trained beside the paper's four, on the loss of its own name (`C_z_loss`)."""

    build: Callable  # takes the model's hyperparameters and returns the keras.Model
    rate: float  # its learning rate, relative to that of the paper's networks


def label_classifier(hyperparameters):
    """Build C_z, which reads age bin and gender from z: [N, Z] -> logits [N, bins] and [N, 2]."""
    import keras
    from keras import layers

    def fc(x, length: int, name: str):
        return layers.Dense(length, kernel_initializer=keras.initializers.RandomNormal(stddev=STDDEV), name=name)(x)

    z = x = keras.Input([hyperparameters.num_z_channels], name="z")
    for i, length in enumerate(C_Z_LENGTHS):
        x = layers.ReLU()(fc(x, length, f"C_z_fc{i}"))
    logits = fc(x, hyperparameters.num_categories, "C_z_age"), fc(x, 2, "C_z_gender")
    return keras.Model(z, [layers.Activation("linear", dtype="float32")(one) for one in logits], name="C_z")


def label_losses(step: Step) -> dict:
    """Return the losses that hide age and gender from z (Fader Networks: Lample et al., NeurIPS 2017).

    C_z minimises C_z_loss, its cross-entropy on age bin and gender. E minimises E_label_loss, the cross-entropy between
    the uniform distribution and C_z's prediction.
    """
    import tensorflow as tf

    logits = step.networks["C_z"](step.out["z"], training=True)
    # labels are in {-1, +1}, probabilities in {0, 1}; an unknown gender (0, 0) is 0.5 each
    errors = [
        tf.nn.softmax_cross_entropy_with_logits((label + 1) / 2, one)
        for label, one in zip((step.ages, step.genders), logits, strict=True)
    ]
    return {
        "E_label_loss": -sum(tf.reduce_mean(tf.nn.log_softmax(one)) for one in logits),
        "C_z_loss": sum(map(tf.reduce_mean, errors)),
    }


def feature_loss(step: Step) -> dict:
    """Return the mean absolute difference of D_img's feature maps of images and reconstructions, summed over layers.

    Feature matching: Larsen et al., VAE/GAN, ICML 2016; Wang et al., pix2pixHD, CVPR 2018.
    """
    import tensorflow as tf

    pairs = zip(step.out["D_input_maps"], step.out["D_G_maps"], strict=True)
    return {"G_feature_loss": sum(tf.reduce_mean(tf.cast(tf.abs(x - y), tf.float32)) for x, y in pairs)}


TERMS = {
    "G_img": Term("G_img_loss", "D_img classifies generated images as real"),
    "E_z": Term("E_z_loss", "D_z classifies z as drawn from the prior"),
    "tv": Term("tv_loss", "total variation of generated images"),
    "label": Term("E_label_loss", "z hides age and gender from a classifier", label_losses, "C_z"),
    "feature": Term("G_feature_loss", "generated and real images match in D_img's feature maps", feature_loss),
}
AUXILIARY_NETWORKS = {"C_z": AuxiliaryNetwork(label_classifier, rate=5)}
PAPER_TERMS = tuple(name for name, term in TERMS.items() if not term.compute)
LISTED = 3, 5  # how many weights an older config.json or command line lists without names, in the order of TERMS
PRESETS = {
    "released": {"G_img": 1e-4, "E_z": 0.0, "tv": 0.0},  # of the reference program's released code
    "default": {"G_img": 1e-4, "E_z": 1e-4, "tv": 1e-4},
    "paper": {"G_img": 0.01, "E_z": 0.01, "tv": 0.1},  # section 4.1: 100 : 1 : 1 : 10, divided by 100
    "aging": {"G_img": 3e-4, "E_z": 1e-4, "tv": 1e-4, "label": 2e-2, "feature": 0.3},  # docs/experiments.md
}


def complete_weights(
    weights: Mapping[str, float] | Sequence[float], defaults: Mapping[str, float] = PRESETS["default"]
) -> dict[str, float]:
    """Return the weights by name, in the order of TERMS: the paper's three, and the others that are not 0.

    weights: by name, the missing ones from `defaults`; or a list of three or five in the order of TERMS. Raises
    InputError for other names or numbers.
    """
    if not isinstance(weights, Mapping):
        if len(weights) not in LISTED:
            raise InputError(f"{len(weights)} weights without names: give {' or '.join(map(str, LISTED))}, or names")
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
