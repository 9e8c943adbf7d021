"""Conditional adversarial autoencoder for age progression and regression (Zhang, Song, Qi, CVPR 2017).

The paper's losses and objectives, and the class `FaceAging`: the four networks, the training step, the training loop,
and the aging of faces. Section, equation and figure numbers are the paper's (arXiv 1702.08423).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import support  # before keras and tensorflow: it sets environment variables that they read

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ops
from support import InputError, checkpoints, fast_ops, printable, rendering
from support.batches import PRETRAINING_EPOCHS, BatchLoader, epoch_name, labels_of, read_faces, train_val_split
from support.config import (
    EPOCHS,
    LEARNING_RATE,
    OPTIMIZERS,
    SCHEDULES,
    Hyperparameters,
    count_layers,
    read_config,
    write_config,
)
from support.dataset import Face, TooManyBad, data_digest
from support.devices import Devices
from support.evaluation import PASTED_FACES, SAME_PERSON, Evaluator, mean
from support.figures import GRID_COLUMNS, animate_training, grid
from support.images import fit_images, read_images, read_parts, save_image
from support.labels import FEMALE, MALE, AgeBins, gender_labels, gender_numbers
from support.losses import AUXILIARY_NETWORKS, PRESETS, TERMS, Step, Term, complete_weights, networks_of
from support.photo_editing import keep_detail, own_labels, pasted_distances, read_photo, read_photos
from support.pretrained import DEFAULT_MODEL, Distribution, included_model, is_included, read_distribution
from support.run import Run, check_beginning, check_finite

support.restore_environment()

D_Z_LENGTHS = (64, 32, 16)  # hidden layers of the discriminator on z
D_IMG_CHANNELS = (16, 32, 64, 128)  # convolutions of the discriminator on images
D_IMG_FC_LENGTH = 1024
MUON_RATE = 3  # the learning rate of E and G under Muon relative to that of the networks that use Adam
CHECKPOINT_EPOCHS = 5  # epochs from one checkpoint to the next


def paper_losses(images, out: Mapping) -> dict[str, tf.Tensor]:
    """Return the terms of the paper's objective by the reference program's names, float32 scalars.

    images: a batch x, [N, S, S, C] in [-1, 1]; out: the outputs of `FaceAging.forward` for it. Means over the batch.
    """

    def cross_entropy(logits, target):
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), target), logits))

    return {
        # the reconstruction loss alone: L2 in the paper, L1 in the reference program and here
        "EG_loss": tf.reduce_mean(tf.abs(images - out["G"])),
        # non-saturating generator losses: E and G against D_z, and against D_img
        "E_z_loss": cross_entropy(out["D_z_logits"], 1.0),
        "G_img_loss": cross_entropy(out["D_G_logits"], 1.0),
        # discriminator losses: z from the prior against z from E, real images against generated ones
        "D_z_loss_prior": cross_entropy(out["D_z_prior_logits"], 1.0),
        "D_z_loss_z": cross_entropy(out["D_z_logits"], 0.0),
        "D_img_loss_input": cross_entropy(out["D_input_logits"], 1.0),
        "D_img_loss_G": cross_entropy(out["D_G_logits"], 0.0),
        "tv_loss": fast_ops.total_variation(out["G"]),
    }


def objectives(losses: Mapping, loss_weights: Mapping) -> dict:
    """Return the total objective of each optimizer, by the names of `FaceAging.variables`.

    They are the parts of the paper's equation 4, with L1 and non-saturating losses as in the reference program; E and G
    minimise "EG". losses: tensors or numbers by name; loss_weights: by the names of support.losses.TERMS.
    """
    minimised = {
        "EG": losses["EG_loss"] + sum(weight * losses[TERMS[name].loss] for name, weight in loss_weights.items()),
        "D_z": losses["D_z_loss_prior"] + losses["D_z_loss_z"],
        "D_img": losses["D_img_loss_input"] + losses["D_img_loss_G"],
    }
    return minimised | {name: losses[f"{name}_loss"] for name in AUXILIARY_NETWORKS if f"{name}_loss" in losses}


def status_line(losses: Mapping[str, float]) -> str:
    """Return the losses as one line: reconstruction, the weighted terms, and each discriminator's objective."""
    shown = {"L1": losses["EG_loss"]}
    shown |= {name: losses[term.loss] for name, term in TERMS.items() if term.loss in losses}
    shown |= {name: loss for name, loss in objectives(losses, {}).items() if name != "EG"}
    return " ".join(f"{name} {loss:.3f}" for name, loss in shown.items())


class TrainingPlan(NamedTuple):
    """The length of a training, with the learning rate and the loss weights at each position.

    `schedule`, one of SCHEDULES, is a function of the position relative to num_epochs: if a run is resumed for more
    epochs, the learning rate continues on the longer schedule, at its value after the epochs done.
    """

    num_epochs: int
    learning_rate: float
    decay_rate: float  # multiplies the learning rate every 2 epochs
    schedule: str
    loss_weights: Mapping[str, float]

    @property
    def settings(self) -> dict:
        """The settings that config.json records; decay_rate, which no flag sets, only if it is not 1."""
        settings = {"learning_rate": float(self.learning_rate), "schedule": self.schedule}
        settings |= {"decay_rate": float(self.decay_rate)} if self.decay_rate != 1 else {}
        return settings | {"loss_weights": self.loss_weights}

    def rate(self, epochs: float) -> float:
        """Return the learning rate of E and G after this number of epochs, negative in pre-training."""
        epochs = max(epochs, 0)
        factor = SCHEDULES[self.schedule](min(1, epochs / max(1, self.num_epochs)))
        return self.learning_rate * self.decay_rate ** (int(epochs) // 2) * factor

    def weights(self, epochs: float) -> dict[str, tf.Tensor]:
        """Return the loss weights after this number of epochs; in pre-training all are 0."""
        last = max(0, self.num_epochs)
        weights = {name: w if epochs >= TERMS[name].start * last else 0 for name, w in self.loss_weights.items()}
        return {name: tf.constant(weight, tf.float32) for name, weight in weights.items()}


@dataclasses.dataclass(eq=False)
class FaceAging(Hyperparameters):
    """The CAAE: encoder E, generator G, discriminators D_z (on the latent code) and D_img (on images).

    E(images) -> z [N, num_z_channels] in (-1, 1); G([z, ages, genders]) -> images [N, S, S, C] in (-1, 1);
    D_z(z) and D_img([images, ages, genders]) -> logits [N, 1]. Images are float32 in [-1, 1], labels are vectors
    in {-1, +1}: ages [N, num_categories], genders [N, 2].

    Constructing writes no files. It seeds the global random generators of Python, NumPy and TensorFlow with `seed`,
    which determines the initial weights. Raises InputError if the hyperparameters fit no network.
    """

    save_dir: str | Path = "save"  # folder of the run
    strategy: tf.distribute.Strategy | None = None  # distributes training: see support.devices.choose_strategy

    def __post_init__(self):
        self.bins = AgeBins(self.age_bounds)
        self.save_dir = Path(self.save_dir)
        if is_included(self.save_dir):
            raise InputError(f"{self.save_dir} is the folder of an included model, which is read-only: use another one")
        if self.num_categories != len(self.bins):
            raise InputError(
                f"num_categories is {self.num_categories}, not the number of age bins: use {len(self.bins)}"
            )
        self.num_layers = count_layers(self.size_image, self.size_kernel, self.num_gen_channels)
        self.devices = Devices(self.strategy)

        self.devices.seed(self.seed)
        with self.devices.building(self.precision):
            # the order matters: initial weights are drawn from one random generator
            self.E = self._encoder()
            self.G = self._generator()
            self.D_z = self._discriminator_z()
            self.D_img = self._discriminator_img()
        self.D_img_features = ops.feature_maps(self.D_img)
        self.z_distribution = None  # of z over real faces: an included model's, or fitted by `fit_z`
        self.networks = {network.name: network for network in (self.E, self.G, self.D_z, self.D_img)}
        # the variables that each objective is minimised over
        self.variables = {
            "EG": self.E.trainable_variables + self.G.trainable_variables,
            "D_z": self.D_z.trainable_variables,
            "D_img": self.D_img.trainable_variables,
        }
        self.optimizer = None  # of E and G, one of OPTIMIZERS: fixed by `train`, or by the run that is loaded
        self._optimizers = {}
        # the position of training: the next epoch and batch; step counts all batches
        self.epoch = tf.Variable(1, dtype=tf.int64, trainable=False)
        self.batch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        position = {"epoch": self.epoch, "batch": self.batch, "step": self.step}
        self.checkpoints = checkpoints.Checkpoints(self.networks, position)

    # The networks (paper: section 3, figure 3). Sizes beside the lines are those of the defaults.

    def _image_input(self):
        return keras.Input([self.size_image, self.size_image, self.num_input_channels], name="images")

    def _label_inputs(self):
        return keras.Input([self.num_categories], name="ages"), keras.Input([2], name="genders")

    def _encoder(self) -> keras.Model:
        images = x = self._image_input()  # [batch, 128, 128, 3]
        for i in range(self.num_layers):
            x = ops.conv2d(x, self.num_encoder_channels * 2**i, self.size_kernel, name=f"E_conv{i}")
            x = layers.ReLU()(x)  # [batch, 64, 64, 64] ... [batch, 4, 4, 1024]
        x = layers.Flatten()(x)
        x = ops.fc(x, self.num_z_channels, name="E_fc")
        return keras.Model(images, ops.float32_output(x, "tanh"), name="E")  # [batch, 50]

    def _generator(self) -> keras.Model:
        z = keras.Input([self.num_z_channels], name="z")
        ages, genders = self._label_inputs()
        # tile labels to about the length of z, so that they have a similar influence
        tiled_length = self.num_z_channels * self.tile_ratio
        x = ops.concat_label(z, ages, max(1, int(tiled_length / self.num_categories)))
        x = ops.concat_label(x, genders, max(1, int(tiled_length / 2)))  # [batch, 150]
        size_mini_map = self.size_image // 2**self.num_layers
        x = ops.fc(x, size_mini_map**2 * self.num_gen_channels, name="G_fc")
        x = layers.Reshape([size_mini_map, size_mini_map, self.num_gen_channels])(x)
        x = layers.ReLU()(x)  # [batch, 4, 4, 1024]
        for i, stride in enumerate([2] * self.num_layers + [1]):
            channels = self.num_gen_channels // 2 ** (i + 1)
            # [batch, 8, 8, 512] ... [batch, 128, 128, 32], [batch, 128, 128, 16]; in the layer, ReLU and bias are fused
            x = ops.deconv2d(x, channels, self.size_kernel, stride, activation="relu", name=f"G_deconv{i}")
        x = ops.deconv2d(x, self.num_input_channels, self.size_kernel, 1, name=f"G_deconv{i + 1}")
        return keras.Model([z, ages, genders], ops.float32_output(x, "tanh"), name="G")  # [batch, 128, 128, 3]

    def _discriminator_z(self) -> keras.Model:
        z = x = keras.Input([self.num_z_channels], name="z")
        for i, length in enumerate(D_Z_LENGTHS):
            x = ops.fc(x, length, name=f"D_z_fc{i}")
            x = layers.ReLU()(ops.batch_norm(x, name=f"D_z_bn{i}"))
        logits = ops.fc(x, 1, name=f"D_z_fc{len(D_Z_LENGTHS)}")
        return keras.Model(z, ops.float32_output(logits), name="D_z")  # [batch, 1]

    def _discriminator_img(self) -> keras.Model:
        images = x = self._image_input()
        ages, genders = self._label_inputs()
        for i, channels in enumerate(D_IMG_CHANNELS):
            x = ops.conv2d(x, channels, self.size_kernel, name=f"D_img_conv{i}")
            x = layers.ReLU()(ops.batch_norm(x, name=f"D_img_bn{i}"))  # [batch, 64, 64, 16] ... [batch, 8, 8, 128]
            if i == 0:
                labels = ops.concat_label(ages, genders, max(1, self.num_categories // 2))
                x = ops.concat_label(x, labels)  # [batch, 64, 64, 16 + 10 + 10]
        x = layers.Flatten()(x)  # [batch, 8 * 8 * 128]
        x = ops.lrelu(ops.fc(x, D_IMG_FC_LENGTH, name="D_img_fc1"))
        logits = ops.fc(x, 1, name="D_img_fc2")
        return keras.Model([images, ages, genders], ops.float32_output(logits), name="D_img")  # [batch, 1]

    def add_network(self, name: str) -> None:
        """Build the auxiliary network of this name, if it is not built yet; `seed` determines its initial weights."""
        if name in self.networks:
            return
        self.devices.seed(self.seed)
        with self.devices.building(self.precision):
            self.networks[name] = AUXILIARY_NETWORKS[name].build(self)
        self.variables[name] = self.networks[name].trainable_variables

    @property
    def optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """An optimizer for each of `variables`, created at first use: aging does not need their memory."""
        for name in [name for name in self.variables if name not in self._optimizers]:
            with tf.init_scope(), self.devices.building(self.precision):
                self._optimizers[name] = self._optimizer(name)
        return self._optimizers

    def _optimizer(self, name: str) -> keras.optimizers.Optimizer:
        # TensorFlow orders operations by variable names, which Keras would number across the whole process: fixed names
        # keep the op order, and so the results, bit-reproducible
        number = ["EG", "D_z", "D_img", *AUXILIARY_NETWORKS].index(name)
        # beta1 is the paper's (section 4.1); epsilon is TensorFlow 1's default, as in the reference program
        settings = {"beta_1": 0.5, "epsilon": 1e-8}
        self.optimizer = self.optimizer or "adam"
        if name == "EG" and self.optimizer == "muon":
            optimizer = fast_ops.Muon(**settings, bfloat16=self.precision == "mixed_bfloat16")
        else:
            optimizer = fast_ops.Adam(**settings, name=f"adam_{number}" if number else "adam")
        if self.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(self.variables[name])
        return optimizer

    # The training step (paper: equations 3 to 6).

    def forward(self, images, ages, genders, z_prior, training: bool = True) -> dict[str, tf.Tensor]:
        """Return one forward pass: z [N, Z], generated images G [N, S, S, C], logits [N, 1] and D_img's feature maps.

        D_z classifies z from E and z from the prior; D_img classifies real and generated images.
        """
        images, ages, genders, z_prior = (tf.convert_to_tensor(x) for x in (images, ages, genders, z_prior))
        z = self.E(images, training=training)
        generated = self.G([z, ages, genders], training=training)
        generated_logits, *generated_maps = self.D_img_features([generated, ages, genders], training=training)
        input_logits, *input_maps = self.D_img_features([images, ages, genders], training=training)
        return {
            "z": z,
            "G": generated,
            "D_z_logits": self.D_z(z, training=training),
            "D_z_prior_logits": self.D_z(z_prior, training=training),
            "D_G_logits": generated_logits,
            "D_input_logits": input_logits,
            "D_G_maps": generated_maps,
            "D_input_maps": input_maps,
        }

    def losses(self, images, ages, genders, z_prior, training: bool = True) -> dict[str, tf.Tensor]:
        """Return the paper's losses on a batch: see `paper_losses`.

        images: [N, S, S, C] in [-1, 1]; ages: [N, num_categories] and genders: [N, 2] in {-1, +1}; z_prior:
        [N, num_z_channels] in (-1, 1).
        """
        return paper_losses(images, self.forward(images, ages, genders, z_prior, training))

    @tf.function
    def train_step(self, images, ages, genders, z_prior, loss_weights) -> tuple[dict, dict]:
        """Update every network once on a batch; return the losses and the tensors for histograms, by name.

        images: uint8 [N, S, S, C]; ages, genders, z_prior as in `losses`; loss_weights: float32 scalars by the names of
        support.losses.TERMS, of which those beyond the paper may be missing. Each of several workers passes its part of
        the batch; the losses are those of the whole batch.
        """
        return self.devices.run(self._update, (images, ages, genders, z_prior), loss_weights)

    def _update(self, images, ages, genders, z_prior, loss_weights) -> tuple[dict, dict]:
        images = ops.normalize(images)
        with tf.GradientTape(persistent=True) as tape:
            out = self.forward(images, ages, genders, z_prior)
            losses = paper_losses(images, out)
            seed = tf.stack([self.seed % 2**31, tf.cast(self.step, tf.int32)])
            step = Step(self.networks, images, ages, genders, out, seed, loss_weights)
            for name in loss_weights:
                if compute := TERMS[name].compute:
                    losses |= compute(step)
            # the optimizers sum the gradients over the replicas
            minimised = {
                name: self.optimizers[name].scale_loss(objective / self.devices.replicas)
                for name, objective in objectives(losses, loss_weights).items()
            }
        # every gradient first, then every update: one simultaneous step
        gradients = {name: tape.gradient(objective, self.variables[name]) for name, objective in minimised.items()}
        for name, gradient in gradients.items():
            self.optimizers[name].apply(gradient, self.variables[name])
        for name in loss_weights:
            self._update_again(TERMS[name], step)
        histograms = {name: value for name, value in out.items() if name == "z" or name.endswith("logits")}
        return losses, histograms | {"z_prior": z_prior}

    def _update_again(self, term: Term, step: Step) -> None:
        """Make the updates of the term's auxiliary network beyond the first, on the same batch."""
        if not term.network:
            return
        optimizer, variables = self.optimizers[term.network], self.variables[term.network]
        for _ in range(AUXILIARY_NETWORKS[term.network].updates - 1):
            with tf.GradientTape() as tape:
                loss = term.compute(step)[f"{term.network}_loss"]
                scaled = optimizer.scale_loss(loss / self.devices.replicas)
            optimizer.apply(tape.gradient(scaled, variables), variables)

    # Training.

    def train(
        self,
        faces: Sequence[Face],
        num_epochs: int = EPOCHS,
        learning_rate: float = LEARNING_RATE,
        decay_rate: float = 1.0,
        loss_weights: Mapping[str, float] | Sequence[float] = PRESETS["default"],
        use_trained_model: bool = True,
        init_model: str | None = None,
        balance: bool = False,
        flip: bool = False,
        cache: bool = False,
        optimizer: str = "adam",
        schedule: str = "constant",
        notes: Mapping | None = None,
        on_epoch_end: Callable[["FaceAging"], None] | None = None,
    ) -> int | None:
        """Train on `faces` until `num_epochs` epochs are done, resuming from the checkpoint in save_dir if it has one.

        loss_weights: by the names of support.losses.TERMS. optimizer: that of E and G. The learning rate follows
        `schedule` over all epochs, times decay_rate every 2. Without use_trained_model, ten epochs with all weights 0
        come first. init_model: an included model to start from. balance samples the age bins equally often; flip
        mirrors half of the faces; cache keeps decoded images. config.json records these settings, and `notes`.
        on_epoch_end is called with the model. Return None when all epochs are done. On Ctrl-C or SIGTERM, finish the
        batch, save, and return the signal's number. Raises InputError if training cannot begin or resume,
        FloatingPointError if a loss is not finite. Without a GPU, TensorFlow is deterministic from this call on.
        """
        self._choose_optimizer(optimizer)
        config = read_config(self.save_dir)
        training, held_out, record = train_val_split(faces, self.seed, config, self.devices.log, init_model)
        batches = self._batches(training, balance, flip, cache)
        self.devices.make_deterministic()
        plan = TrainingPlan(num_epochs, learning_rate, decay_rate, schedule, complete_weights(loss_weights))
        settings = {"optimizer": optimizer, **plan.settings, "balance": balance, "flip": flip, "init_model": init_model}
        notes = {**(notes or {}), **settings, "faces": len(faces), "data": data_digest(faces), **record}
        check_beginning(self.save_dir, use_trained_model, notes, self.config)
        with Run(self.save_dir, self.devices, status_line) as run:  # locks the folder
            self._begin(plan, use_trained_model, init_model)
            self.devices.check_agreement(self.config, int(self.step), training, plan, balance, flip)
            held_out_batch = read_faces(held_out, self.bins, self._load_image, self.devices.log)
            run.open(self.config, notes, int(self.step))
            self._train_epochs(run, batches, held_out_batch, plan, on_epoch_end)
        return run.stop_signal

    def _train_epochs(self, run: Run, batches: BatchLoader, held_out, plan: TrainingPlan, on_epoch_end) -> None:
        """Train from the current position until plan.num_epochs epochs are done or run.stop_signal is set."""
        run.draw("test/input.png", save_image, grid(held_out[0][:GRID_COLUMNS]))
        for epoch in range(int(self.epoch), plan.num_epochs + 1):
            if not self._train_epoch(run, batches, epoch, plan):
                return
            run.log_epoch(int(self.step), epoch_name(epoch), *self._show_epoch(*held_out))
            self.epoch.assign(epoch + 1)
            self.batch.assign(0)
            if on_epoch_end and self.devices.is_chief:
                on_epoch_end(self)
            if run.stop_signal or epoch % CHECKPOINT_EPOCHS == 0 or epoch == plan.num_epochs:
                run.save(self.save_checkpoint)
            if run.stop_signal:
                return
        if self.devices.is_chief:
            epochs = range(int(self.epoch - self.step // len(batches)), int(self.epoch))  # of this run
            run.draw("demo_train.gif", animate_training, map(epoch_name, epochs), self.size_image, self.bins.names)

    def _train_epoch(self, run: Run, batches: BatchLoader, epoch: int, plan: TrainingPlan) -> bool:
        """Train on the remaining batches of an epoch; return False if a signal stopped it before the last one."""
        first = int(self.batch)
        loaded = batches.of(epoch, first, int(self.step))
        title = f"Epoch {epoch_name(epoch)}/{epoch_name(plan.num_epochs)}"
        try:
            for batch in run.progress(loaded, title, first, len(batches)):
                epochs = epoch - 1 + int(self.batch) / len(batches)
                rate = self._set_learning_rates(plan.rate(epochs))
                losses, out = self.train_step(*batch, plan.weights(epochs))
                self.step.assign_add(1)
                self.batch.assign_add(1)
                done = int(self.batch) / len(batches)
                run.log(int(self.step), epoch - 1 + done, losses, out, rate)  # waits for the device
                if done < 1 and run.save_is_due:
                    run.save(self.save_checkpoint)
                    if run.stop_signal:
                        return False
        except TooManyBad:
            run.save(self.save_checkpoint)
            raise
        for path, reason in batches.newly_bad().items():
            self.devices.log(f"Replaced by another face: {printable(path)}: {reason}")
        return True

    def _set_learning_rates(self, rate: float) -> float:
        for name, optimizer in self.optimizers.items():
            relative = AUXILIARY_NETWORKS[name].rate if name in AUXILIARY_NETWORKS else 1
            if self.optimizer == "muon" and name != "EG":
                relative /= MUON_RATE
            optimizer.learning_rate.assign(rate * relative)
        return rate

    def _batches(self, faces: Sequence[Face], balance: bool, flip: bool, cache: bool) -> BatchLoader:
        load_image = functools.cache(self._load_image) if cache else self._load_image
        sizes = {"size_batch": self.size_batch, "num_z_channels": self.num_z_channels, "seed": self.seed}
        worker = {"rank": self.devices.rank, "world_size": self.devices.world_size}
        batches = BatchLoader(faces, self.bins, load_image, **sizes, **worker, balance=balance, flip=flip)
        self.devices.check(self.size_batch, self.precision)
        return batches

    def _load_image(self, path: str) -> np.ndarray:
        return ops.load_image(path, self.size_image, self.num_input_channels)

    def _choose_optimizer(self, optimizer: str) -> None:
        """Have E and G train with this optimizer. Raises InputError if the run or the precision does not permit it."""
        if optimizer not in OPTIMIZERS:
            raise InputError(f"no optimizer is named {optimizer}: the names are {', '.join(OPTIMIZERS)}")
        if optimizer == "muon" and self.precision == "mixed_float16":
            raise InputError("muon does not train in mixed_float16: use --precision mixed_bfloat16 or float32")
        before = self.optimizer or read_config(self.save_dir).get("training", {}).get("optimizer", optimizer)
        if before != optimizer:
            raise InputError(f"the run in {self.save_dir} was made with {before}, not {optimizer}: use {before}")
        self.optimizer = optimizer

    def _begin(self, plan: TrainingPlan, use_trained_model: bool, init_model: str | None) -> None:
        """Restore or initialise networks, optimizers, epoch and step."""
        for name in networks_of(plan.loss_weights):
            self.add_network(name)
        if self.load_checkpoint():
            if self.epoch > plan.num_epochs:
                self.devices.log(f"All {plan.num_epochs} epochs are done")
                return
            self.devices.log(f"Resuming at epoch {epoch_name(int(self.epoch))} after step {int(self.step)}")
        else:
            if init_model:
                self.load_checkpoint(included_model(init_model))
            if not use_trained_model:
                self.epoch.assign(1 - PRETRAINING_EPOCHS)
        parts = *self.networks.values(), *self.optimizers.values()
        checkpoints.check_space(self.save_dir, [variable for part in parts for variable in part.variables])

    def _show_epoch(self, images, ages, genders) -> tuple[dict[str, np.ndarray], float]:
        """Reconstruct the held-out faces and age the first row of them; return both grids and the mean L1."""
        z = self._z_of(images)
        samples = self._images_of(z, ages, genders)
        row = slice(GRID_COLUMNS)
        aged = self._at_every_age(z[row], genders[row])
        sheets = {"samples": ops.batch_grid(samples), "test": ops.batch_grid(np.concatenate(aged), aged.shape[1])}
        return sheets, float(np.abs(ops.normalize(images) - samples).mean())

    def save_checkpoint(self) -> str:
        """Write the state of training to save_dir/checkpoint; return the path.

        The two latest complete checkpoints are kept. Raises InputError if it cannot be written; earlier ones stay
        complete. Raises FloatingPointError, and writes nothing, if a weight is not finite.
        """
        step = int(self.step)
        # a NaN weight makes the loss NaN only at the next step, after it has been saved
        weights = [variable for network in self.networks.values() for variable in network.variables]
        check_finite({weight.path: float(tf.reduce_sum(weight)) for weight in weights}, step)
        checkpoints.check_architecture(self.save_dir, self.config)
        write_config(self.save_dir, self.config, {})
        return self.checkpoints.write(self.save_dir / checkpoints.FOLDER, step, self.optimizers)

    def load_checkpoint(
        self, path: str | Path | None = None, for_inference: bool = False, networks_only: bool = False
    ) -> bool:
        """Load the latest complete checkpoint in the folder `path` or else in save_dir; return False if there is none.

        for_inference loads E and G only; networks_only is its earlier name. A checkpoint of the reference program
        (TensorFlow 1) has only weights, an included model only those of E and G. A damaged checkpoint is reported on
        stderr and the previous one loaded. Raises InputError if all are damaged, or for another architecture, naming
        the first number that differs.
        """
        for_inference = for_inference or networks_only
        folder = Path(path or self.save_dir)
        checkpoints.check_architecture(folder, self.config)
        for name in AUXILIARY_NETWORKS:
            if not for_inference and checkpoints.has_network(folder, name):
                self.add_network(name)
        self.optimizer = self.optimizer or read_config(folder).get("training", {}).get("optimizer")
        return self.checkpoints.restore_latest(folder, None if for_inference else self.optimizers)

    @classmethod
    def load(
        cls, path: str | Path | None = None, save_dir: str | Path | None = None, pretrained: str = DEFAULT_MODEL
    ) -> "FaceAging":
        """Return the trained model of the run in the folder `path`, or else an included model, in float32.

        pretrained: "aging" or "paper", the included model. Results go to save_dir, or else to the run's folder; those
        of an included model go to `save` in the current folder. The sizes come from the run's config.json, or from a
        reference checkpoint's weights. Raises InputError if there is no model.
        """
        path = Path(path or included_model(pretrained))
        config = read_config(path) or checkpoints.read_reference_config(path)
        if not config:
            raise InputError(f"{path} has no trained model: train one, or use another --savedir")
        save_dir = save_dir or ("save" if is_included(path) else path)
        model = cls(**{**config["model"], "precision": "float32"}, save_dir=save_dir)
        if not model.load_checkpoint(path, for_inference=True):
            raise InputError(f"{path} has no trained model yet: train one, or use another --savedir")
        model.z_distribution = read_distribution(path)
        return model

    # Evaluation and aging.

    def evaluate(
        self, faces: Sequence[Face], identity: bool = True, others: Sequence[Face] = (), detail: float = 0
    ) -> dict:
        """Return the metrics of labelled faces: see support.evaluation.Evaluator.metrics.

        identity: compare the first 100 faces with dlib, one second per face; skipped with a line on stderr if dlib is
        missing. Different people, for the false accept rate, are those of `others`, by default of `faces`. detail: the
        generated faces keep that part of the images' own detail, see `age`. Unreadable images are named and skipped.
        Raises InputError if all are unreadable.
        """
        evaluator = Evaluator(self.bins, identity)
        for images, read in read_parts(faces, self._load_image, "Evaluating"):
            ages, genders = labels_of(read, self.bins)
            z = self._z_of(images)
            aged = [self._at_every_age(z, label) for label in (genders, -genders)]  # as the own and the other gender
            if detail:
                aged = [self._with_detail(images, read, z, generated, detail) for generated in aged]
            evaluator.add(images, read, z, self._images_of(z, ages, genders), *aged)
        if evaluator.distances:
            evaluator.add_impostors(*read_images(evaluator.choose_impostors(others or faces), self._load_image))
        metrics = {"detail": detail, **evaluator.metrics()}
        if detail and evaluator.distances:
            metrics["identity"]["overall"] |= self._pasted_identity(faces[:PASTED_FACES], detail)
        return metrics

    def _pasted_identity(self, faces: Sequence[Face], detail: float) -> dict[str, float]:
        """Return how many faces that were aged in place are detected again, and verified: see METRICS."""
        centres, distances = self.bins.centres, []
        for face in faces:
            try:
                found = read_photo(face.path, self.size_image, self.num_input_channels)
            except InputError:
                continue  # reported above
            ages = centres[0], centres[len(centres) // 2], centres[-1]
            aged = self.age_photo(face.path, ages, [face.gender], detail, (), [face.age], [face.gender])
            distances += pasted_distances(found, aged)
        detected = np.isfinite(distances)
        same = np.less(distances, SAME_PERSON)[detected]
        return {"pasted_detection": mean(detected), "pasted_verification": mean(same)}

    def _with_detail(self, images: np.ndarray, faces: Sequence[Face], z, aged: np.ndarray, detail: float) -> np.ndarray:
        """Return generated faces, float [bins, N, S, S, C] in [-1, 1], with detail of the images: see `age`."""
        years = [face.age for face in faces]
        own = self.generate(z, years, [face.gender for face in faces])
        pairs = zip(ops.denormalize(aged).numpy(), self.bins.centres, strict=True)
        kept = [keep_detail(images, images, own, generated, years, centre, detail) for generated, centre in pairs]
        return ops.normalize(np.array(kept)).numpy()

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Return the latent codes z, float32 [N, num_z_channels] in (-1, 1), of images, uint8 [N, H, W, C].

        Raises InputError for any other array.
        """
        return self._z_of(fit_images(images, self.size_image, self.num_input_channels))

    def fit_z(self, faces: Sequence[Face]) -> None:
        """Fit the distribution of z that `sample` uses to real faces; images that cannot be read are skipped."""
        z = [self._z_of(images) for images, _ in read_parts(faces, self._load_image, "Encoding")]
        self.z_distribution = Distribution.fit(np.concatenate(z))

    def sample(self, count: int, seed: int = 2017) -> np.ndarray:
        """Return z of random faces, float32 [count, num_z_channels] in (-1, 1).

        They are sampled from z_distribution, which `fit_z` fits, or without one from U(-1, 1), which is less realistic.
        """
        if self.z_distribution:
            return self.z_distribution.sample(count, seed)
        return np.random.default_rng(seed).uniform(-1, 1, (count, self.num_z_channels)).astype(np.float32)

    def generate(self, z: np.ndarray, ages: Sequence[float], genders: Sequence[int]) -> np.ndarray:
        """Return images, uint8 [N, S, S, C], of z [N, num_z_channels] at ages in years and genders.

        Genders are 0 or "male", 1 or "female". A single z, age or gender is repeated N times. Raises InputError for
        other shapes, and for ages or z that are not finite.
        """
        z, genders = np.atleast_2d(np.asarray(z, np.float32)), gender_numbers(genders)
        try:
            (count,) = np.broadcast_shapes(z.shape[:-1], np.shape(ages), np.shape(genders))
        except ValueError:
            count = 0
        if not count or z.shape[1:] != (self.num_z_channels,) or not np.isfinite(z).all():
            raise InputError(
                f"z must be finite, [N, {self.num_z_channels}], with N or one age and gender: got {list(z.shape)}, "
                f"{np.size(ages)} ages and {len(genders)} genders"
            )
        z = np.broadcast_to(z, (count, self.num_z_channels))
        ages, genders = np.broadcast_to(ages, count), np.broadcast_to(genders, count)
        return ops.denormalize(self._images_of(z, self.bins.interpolated(ages), gender_labels(genders))).numpy()

    def at_every_age(self, z: np.ndarray, genders: Sequence[int]) -> np.ndarray:
        """Generate images, uint8 [bins, N, S, S, C], of z [N, num_z_channels] at every age bin, young to old."""
        genders = np.broadcast_to(gender_numbers(genders), len(z))
        return ops.denormalize(self._at_every_age(z, gender_labels(genders))).numpy()

    def age(
        self,
        images: np.ndarray,
        ages: Sequence[float],
        genders: Sequence[int],
        detail: float = 0,
        own_ages: Sequence[float] = (),
        own_genders: Sequence[int] = (),
    ) -> np.ndarray:
        """Return the faces of images, uint8 [N, H, W, C], at other ages, uint8 [N, S, S, C]: see `generate`.

        With detail, from 0 to 1, they keep that part of the images' own detail and resolution: the central squares,
        [N, s, s, C], see support.photo_editing.edits. own_ages, own_genders: the labels of the images, by default
        estimated.
        """
        z = self.encode(images)
        aged = self.generate(z, ages, genders)
        if not detail:
            return aged
        faces = fit_images(images, self.size_image, self.num_input_channels)
        own = own_labels(faces, [()] * len(z), np.ravel(own_ages), gender_numbers(own_genders), range(1, len(z) + 1))
        squares = fit_images(images, min(np.shape(images)[1:3]), self.num_input_channels)
        return np.stack(keep_detail(squares, faces, self.generate(z, *own[:2]), aged, own[0], ages, detail))

    def age_photo(
        self,
        photo: str | Path | np.ndarray,
        ages: Sequence[float],
        genders: Sequence[int] = (),
        detail: float = 1,
        faces: Sequence[int] = (),
        own_ages: Sequence[float] = (),
        own_genders: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """Return a photo at its own size, uint8 [H, W, C], with its faces aged in place, for each of some ages.

        photo: a path, or an array uint8 [H, W, 1 or 3]; genders: one for all faces, or one for each, by default their
        own; faces: the numbers of those to age, from left to right, 1 the first, by default all; own_ages, own_genders:
        their labels, by default estimated. Raises InputError where the photo shows no face.
        """
        found = read_photo(photo, self.size_image, self.num_input_channels, numbers=faces)
        own = found.own_labels(np.ravel(own_ages), gender_numbers(own_genders))
        genders = np.broadcast_to(gender_numbers(genders) or own[1], len(found.faces))
        rows = np.repeat(np.reshape(ages, (-1, 1)), len(genders), axis=1)
        aged = found.aged(rows, own, genders, detail, self.encode, self.generate)
        return [np.asarray(found.edited(edit)) for edit in aged]

    @ops.in_batches
    @tf.function(reduce_retracing=True)
    def _z_of(self, images):
        """Return z, float32 [N, num_z_channels], of images of the model's size, uint8 [N, S, S, C]."""
        return self.E(ops.normalize(images), training=False)

    @ops.in_batches
    @tf.function(reduce_retracing=True)
    def _images_of(self, z, ages, genders):
        """Return images, float32 [N, S, S, C] in (-1, 1), of z and label vectors."""
        return self.G([z, ages, genders], training=False)

    def _at_every_age(self, z: np.ndarray, genders: np.ndarray) -> np.ndarray:
        """Return each z [N, Z] with its gender label [N, 2] at every bin, young to old: float32 [bins, N, S, S, C]."""
        bins = len(self.bins)
        ages = np.repeat(self.bins.interpolated(self.bins.centres), len(z), axis=0)
        images = self._images_of(np.tile(z, (bins, 1)), ages, np.tile(genders, (bins, 1)))
        return images.reshape(bins, len(z), *images.shape[1:])

    def test(
        self,
        paths: Sequence[str | Path],
        genders: Sequence[int] = (MALE, FEMALE),
        ages: Sequence[float] = (),
        animate: str = "",
        align: bool = False,
        photo: bool = False,
        detail: float = 0,
        own_ages: Sequence[float] = (),
        own_genders: Sequence[int] = (),
    ) -> int:
        """Write faces at other ages to save_dir/test; return the number of faces.

        By default: sheets of ten faces at every age, test_as_male.png and test_as_female.png, further ones numbered
        from _2. With ages in years: an image for each face, age and gender. With animate, "gif" or "mp4": a film of
        each face from young to old and back. align finds the faces of a photo, levels and crops them; photo also shows
        where. With detail, from 0 to 1, the faces keep that part of their photos' own detail: see `age`. Images that
        cannot be read are reported and skipped. Raises InputError if no face is left.
        """
        faces = rendering.read_input_faces(paths, self.size_image, self.num_input_channels, align, photo)
        renderer = self._renderer(detail, own_ages, own_genders)
        return renderer.age(faces, gender_numbers(genders), ages, animate)

    def _renderer(self, *detail) -> rendering.Renderer:
        return rendering.Renderer(self.save_dir / "test", self.bins, self.encode, self.generate, *detail)

    def age_photos(
        self,
        paths: Sequence[str | Path],
        ages: Sequence[float] = (),
        genders: Sequence[int] = (),
        detail: float = 1,
        years: Sequence[float] = (),
        animate: str = "",
        film_side: int = rendering.PHOTO_FILM_SIDE,
        align: bool = False,
        faces: Sequence[int] = (),
        own_ages: Sequence[float] = (),
        own_genders: Sequence[int] = (),
    ) -> int:
        """Write whole photos with their faces aged in place to save_dir/test; return the number of photos.

        An image for each of `ages`, and of `years` relative to everyone's own age, in the format of the photo; with
        animate, "gif" or "mp4", a film. The other arguments are those of `age_photo`, film_side is the longer side of a
        film in pixels, and align searches for faces also in images that are aligned faces as a whole.
        """
        photos = read_photos(paths, self.size_image, self.num_input_channels, align, faces)
        renderer = self._renderer(detail, own_ages, own_genders)
        return renderer.age_photos(photos, gender_numbers(genders), ages, years, animate, film_side)

    def draw_random(self, count: int, genders: Sequence[int] = (MALE, FEMALE), seed: int = 2017) -> None:
        """Write random faces at every age, ten per sheet, as save_dir/test/random_as_*.png."""
        self._renderer().show_random(self.sample(count, seed), gender_numbers(genders))

    def blend(
        self,
        first: str | Path,
        second: str | Path,
        ages: Sequence[float] = (),
        genders: Sequence[int] = (),
        align: bool = False,
        detail: float = 0,
        own_ages: Sequence[float] = (),
        own_genders: Sequence[int] = (),
    ) -> Path:
        """Blend one face into another at both their ages, as save_dir/test/blend_*.png; return its path.

        z and the gender label are interpolated linearly. Ages in years and genders of the two are by default those of
        the file names. detail, own_ages and own_genders are those of `age`. Raises InputError if the names have none,
        or if a photo does not show exactly one face.
        """
        sizes = self.size_image, self.num_input_channels
        faces = [rendering.read_input_face(path, *sizes, align) for path in (first, second)]
        ages, genders = rendering.blend_labels(faces, (first, second), ages, genders)
        ends = np.stack([face.image for face in faces])
        share = np.linspace(0, 1, GRID_COLUMNS, dtype=np.float32)[:, np.newaxis]  # of the second face
        z, gender = ((1 - share) * a + share * b for a, b in (self._z_of(ends), gender_labels(genders)))
        labels = self.bins.interpolated(ages).repeat(len(z), axis=0).reshape(2, len(z), -1)
        blended = [ops.denormalize(self._images_of(z, label, gender)).numpy() for label in labels]
        if detail:
            renderer = self._renderer(detail, own_ages, own_genders)
            ends, blended = renderer.blend_detail(faces, blended, ages)
        return rendering.draw_blend(self.save_dir / "test", faces, ends, blended, ages)
