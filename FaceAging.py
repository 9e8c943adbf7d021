"""Conditional adversarial autoencoder for age progression and regression (Zhang, Song, Qi, CVPR 2017).

`FaceAging` holds the four networks, their losses and one training step, the training loop with its checkpoints, and the
aging of faces. Section, equation and figure numbers are the paper's (arXiv 1702.08423).
"""

import contextlib
import functools
import itertools
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# TensorFlow leaves oneDNN off on CPUs without AVX-512 extensions: there a step takes 1.8 times as long
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# or else it takes a GPU's whole memory at once
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image
from tqdm import tqdm

import ops
from support import aging_measures, batches, checkpoints, dataset, devices, evaluation, fast_ops, files, pictures, run
from support.align import align_faces, looks_aligned, opencv
from support.dataset import Face
from support.errors import InputError, printable, reason
from support.files import SHIPPED_MODEL, read_config, write_whole
from support.images import BadPicture, fit_image, read_image, save_image, to_image
from support.labels import AGE_BOUNDS, FEMALE, GENDER_NAMES, MALE, UNKNOWN, AgeBins, gender_labels

PRETRAINING_EPOCHS = 10  # without adversaries, numbered -9 to 0: before and outside the epochs of the training proper
D_Z_LENGTHS = (64, 32, 16)  # hidden layers of the discriminator on z
D_IMG_CHANNELS = (16, 32, 64, 128)  # convolutions of the discriminator on images
D_IMG_FC_LENGTH = 1024
HISTOGRAM_STEPS = 50  # from one histogram of z and the logits to the next
CHECKPOINT_EPOCHS = 5
CHECKPOINT_SECONDS = 600
FACES_PER_SHEET = 10
ARCHITECTURE = (  # what a checkpoint and the networks it is loaded into must share
    "size_image",
    "size_kernel",
    "num_input_channels",
    "num_encoder_channels",
    "num_z_channels",
    "num_categories",
    "num_gen_channels",
)
FILM_FRAMES = 48  # from young to old and back
FILM_SECONDS = 0.1  # of a frame
FILM_SIDE = 64  # pixels of the face at least
FILM_BYTES = 2_000_000  # of a GIF of one face
GIF_BYTES = 10_000_000  # of demo_train.gif: what still loads in a browser at once
MEASURES = {  # of a set of faces, and their units
    "faces": "how many",
    "L1": "mean absolute difference of a face and its reconstruction, pixels in [-1, 1]",
    "PSNR": "peak signal-to-noise ratio of the reconstructions in dB, mean over faces",
    "SSIM": "structural similarity of a face and its reconstruction, 1 where equal, mean over faces",
    "z_KS": "Kolmogorov-Smirnov distance of a dimension of z from U(-1, 1), mean over dimensions; "
    "n uniform numbers have about 0.87 / sqrt(n) by chance",
    "z_KS_pooled": "the same distance of all dimensions taken together",
    "sharpness": "variance of the Laplacian of the reconstructions, relative to that of the faces",
    "label_movement": "mean absolute change of the picture from an age bin to the next, pixels in [-1, 1]",
}
GENERATOR_BATCH = 50  # pictures generated at a time when aging: bounds the memory whatever the number of faces


class FaceAging:
    """The CAAE: encoder E, generator G, discriminators D_z (on the latent code) and D_img (on images).

    E(images) -> z [N, num_z_channels] in (-1, 1); G([z, ages, genders]) -> images [N, S, S, C] in (-1, 1);
    D_z(z) and D_img([images, ages, genders]) -> logits [N, 1]. Images go in as float32 in [-1, 1], labels as vectors
    in {-1, +1}: ages [N, num_categories], genders [N, 2]. Constructing writes and locks nothing; it seeds the global
    random generators of Python, NumPy and TensorFlow with `seed`, from which the initial weights come.

    Arguments (defaults are the reference program's): size_image in pixels, a power of two; size_kernel, the width of
    the convolutions in pixels; size_batch in faces; num_input_channels 1 (grey) or 3; num_encoder_channels and
    num_gen_channels, of the encoder's first and the generator's widest layer; num_z_channels, the length of the latent
    code; num_categories, the number of age bins; tile_ratio, how long the labels are beside z; age_bounds, the last age
    of each bin but the last; save_dir, where a run is kept; precision, a Keras dtype policy: float32, mixed_bfloat16 or
    mixed_float16; strategy, what shares training out over devices and workers (none by default: see ops.strategy).

    Raises InputError where the sizes fit no network.
    """

    def __init__(
        self,
        size_image: int = 128,
        size_kernel: int = 5,
        size_batch: int = 100,
        num_input_channels: int = 3,
        num_encoder_channels: int = 64,
        num_z_channels: int = 50,
        num_categories: int = 10,
        num_gen_channels: int = 1024,
        tile_ratio: float = 1.0,
        age_bounds: Sequence[int] = AGE_BOUNDS,
        save_dir: str | Path = "save",
        precision: str = "float32",
        seed: int = 2017,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self.config = {
            "size_image": size_image,
            "size_kernel": size_kernel,
            "size_batch": size_batch,
            "num_input_channels": num_input_channels,
            "num_encoder_channels": num_encoder_channels,
            "num_z_channels": num_z_channels,
            "num_categories": num_categories,
            "num_gen_channels": num_gen_channels,
            "tile_ratio": tile_ratio,
            "age_bounds": list(age_bounds),
            "precision": precision,
            "seed": seed,
        }
        self.size_image = size_image
        self.size_kernel = size_kernel
        self.size_batch = size_batch
        self.num_input_channels = num_input_channels
        self.num_encoder_channels = num_encoder_channels
        self.num_z_channels = num_z_channels
        self.num_categories = num_categories
        self.num_gen_channels = num_gen_channels
        self.tile_ratio = tile_ratio
        self.bins = AgeBins(age_bounds)
        self.save_dir = Path(save_dir)
        self.precision = precision
        self.seed = seed
        # stride-2 layers of E and G; they leave a map of 2 * (size_kernel // 2) pixels, 4 at the defaults
        self.num_layers = int(np.log2(size_image)) - size_kernel // 2
        self._check_sizes()
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync  # devices, each with its equal part of a batch
        everything = devices.Devices(self.strategy)
        self.worker, self.num_workers = everything.rank, everything.world_size
        self.is_chief = self.worker == 0

        keras.utils.set_random_seed(seed)
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(precision)
        try:
            with self.strategy.scope():
                self.E = self._encoder()
                self.G = self._generator()
                self.D_z = self._discriminator_z()
                self.D_img = self._discriminator_img()
                self.variables = {
                    "EG": self.E.trainable_variables + self.G.trainable_variables,
                    "D_z": self.D_z.trainable_variables,
                    "D_img": self.D_img.trainable_variables,
                }
                self.optimizers = {name: self._optimizer() for name in self.variables}
        finally:
            keras.config.set_dtype_policy(policy)
        # where training stands: epoch and batch are those to come next, step counts every batch ever trained
        self.epoch = tf.Variable(1, dtype=tf.int64, trainable=False)
        self.batch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.damaged = set()  # checkpoints that could not be read: not to be kept as one of the two

    def _check_sizes(self):
        if self.size_image & (self.size_image - 1) or self.num_layers < 1:
            raise InputError(
                f"image size {self.size_image} is not a power of two that a kernel of {self.size_kernel} fits"
            )
        if self.num_gen_channels % 2 ** (self.num_layers + 1):
            raise InputError(
                f"{self.num_gen_channels} generator channels cannot be halved {self.num_layers + 1} times: "
                f"take a multiple of {2 ** (self.num_layers + 1)}"
            )
        if self.num_categories != len(self.bins):
            raise InputError(f"num_categories is {self.num_categories}, but the age bounds make {len(self.bins)} bins")

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
        # each label is tiled to about the length of z, so that it is heard beside it
        tiled_length = self.num_z_channels * self.tile_ratio
        x = ops.concat_label(z, ages, max(1, int(tiled_length / self.num_categories)))
        x = ops.concat_label(x, genders, max(1, int(tiled_length / 2)))  # [batch, 150]
        size_mini_map = self.size_image // 2**self.num_layers
        x = ops.fc(x, size_mini_map**2 * self.num_gen_channels, name="G_fc")
        x = layers.Reshape([size_mini_map, size_mini_map, self.num_gen_channels])(x)
        x = layers.ReLU()(x)  # [batch, 4, 4, 1024]
        for i, stride in enumerate([2] * self.num_layers + [1]):
            channels = self.num_gen_channels // 2 ** (i + 1)
            # [batch, 8, 8, 512] ... [batch, 128, 128, 32], [batch, 128, 128, 16]
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
            x = layers.ReLU()(ops.batch_norm(x, name=f"D_img_bn{i}"))
            if i == 0:
                labels = ops.concat_label(ages, genders, max(1, self.num_categories // 2))
                x = ops.concat_label(x, labels)  # [batch, 64, 64, 16 + 10 + 10]
        x = layers.Flatten()(x)  # [batch, 8 * 8 * 128]
        x = ops.lrelu(ops.fc(x, D_IMG_FC_LENGTH, name="D_img_fc1"))
        logits = ops.fc(x, 1, name="D_img_fc2")
        return keras.Model([images, ages, genders], ops.float32_output(logits), name="D_img")  # [batch, 1]

    def _optimizer(self) -> keras.optimizers.Optimizer:
        # beta1 is the paper's (section 4.1); epsilon is TensorFlow 1's default, which the reference program ran with
        optimizer = fast_ops.Adam(beta_1=0.5, epsilon=1e-8)
        if self.precision == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        return optimizer

    # The losses and the step (paper: equations 3 to 6).

    def forward(self, images, ages, genders, z_prior, training: bool = True) -> dict[str, tf.Tensor]:
        """One pass through the four networks: z [N, 50], G [N, S, S, C] and the logits [N, 1] of real and generated."""
        images, ages, genders, z_prior = (tf.convert_to_tensor(x) for x in (images, ages, genders, z_prior))
        z = self.E(images, training=training)
        generated = self.G([z, ages, genders], training=training)
        return {
            "z": z,
            "G": generated,
            "D_z_logits": self.D_z(z, training=training),
            "D_z_prior_logits": self.D_z(z_prior, training=training),
            "D_G_logits": self.D_img([generated, ages, genders], training=training),
            "D_input_logits": self.D_img([images, ages, genders], training=training),
        }

    def losses(self, images, ages, genders, z_prior, training: bool = True) -> dict[str, tf.Tensor]:
        """The reference program's losses, float32 scalars, means over the batch.

        images: [N, S, S, C] in [-1, 1]; ages: [N, num_categories] and genders: [N, 2] in {-1, +1}; z_prior: [N, 50] in
        (-1, 1). Where the paper has L2 for the reconstruction (equation 4), the reference program and we have L1.
        """
        return self._losses(images, self.forward(images, ages, genders, z_prior, training))

    @staticmethod
    def _losses(images, out) -> dict[str, tf.Tensor]:
        def cross_entropy(logits, target):
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), target), logits))

        return {
            "EG_loss": tf.reduce_mean(tf.abs(images - out["G"])),
            "E_z_loss": cross_entropy(out["D_z_logits"], 1.0),
            "G_img_loss": cross_entropy(out["D_G_logits"], 1.0),
            "D_z_loss_prior": cross_entropy(out["D_z_prior_logits"], 1.0),
            "D_z_loss_z": cross_entropy(out["D_z_logits"], 0.0),
            "D_img_loss_input": cross_entropy(out["D_input_logits"], 1.0),
            "D_img_loss_G": cross_entropy(out["D_G_logits"], 0.0),
            "tv_loss": fast_ops.total_variation(out["G"]),
        }

    @tf.function
    def train_step(self, images, ages, genders, z_prior, loss_weights) -> tuple[dict, dict]:
        """Update every network once on a batch; gives the losses and what the histograms show.

        images: uint8 [N, S, S, C]; ages, genders, z_prior as in `losses`; loss_weights: float32 [3], those of
        G_img_loss, E_z_loss and tv_loss beside the reconstruction's 1. Of several workers each passes its part of the
        batch; the losses are those of the whole.
        """
        batch = images, ages, genders, z_prior
        if self.replicas == 1:
            return self._update(*batch, loss_weights)
        local = self.replicas // self.num_workers
        batch = [tf.reshape(x, [local, -1, *x.shape[1:]]) for x in batch]

        def update():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return self._update(*(x[replica % local] for x in batch), loss_weights)

        losses, out = self.strategy.run(update)
        losses = {name: self.strategy.reduce("MEAN", loss, axis=None) for name, loss in losses.items()}
        return losses, {name: tf.concat(self.strategy.experimental_local_results(x), 0) for name, x in out.items()}

    def _update(self, images, ages, genders, z_prior, loss_weights) -> tuple[dict, dict]:
        images = ops.normalize(images)
        with tf.GradientTape(persistent=True) as tape:
            out = self.forward(images, ages, genders, z_prior)
            losses = self._losses(images, out)
            extra = tf.stack([losses["G_img_loss"], losses["E_z_loss"], losses["tv_loss"]])
            goals = {
                "EG": losses["EG_loss"] + tf.reduce_sum(loss_weights * extra),
                "D_z": losses["D_z_loss_prior"] + losses["D_z_loss_z"],
                "D_img": losses["D_img_loss_input"] + losses["D_img_loss_G"],
            }
            # the optimizers sum the gradients over the replicas
            goals = {name: self.optimizers[name].scale_loss(goal / self.replicas) for name, goal in goals.items()}
        # every gradient first, then every update: one simultaneous step
        gradients = {name: tape.gradient(goal, self.variables[name]) for name, goal in goals.items()}
        for name, gradient in gradients.items():
            self.optimizers[name].apply(gradient, self.variables[name])
        return losses, {name: value for name, value in out.items() if name != "G"}

    # Training.

    def train(
        self,
        faces: Sequence[Face],
        num_epochs: int = 50,
        learning_rate: float = 2e-4,
        decay_rate: float = 1.0,
        loss_weights: Sequence[float] = (1e-4, 1e-4, 1e-4),
        use_trained_model: bool = True,
        use_init_model: bool = False,
        balance: bool = False,
        cache: bool = False,
        notes: dict | None = None,
    ) -> int | None:
        """Train on `faces` until `num_epochs` epochs are done, going on from the checkpoint in save_dir if it has one.

        loss_weights are those of G_img_loss, E_z_loss and tv_loss; the learning rate is multiplied by decay_rate every
        2 epochs. Without use_trained_model, ten epochs at weights (0, 0, 0) come first and carry over; use_init_model
        starts from the shipped model instead of random weights. With balance the age bins are drawn equally; with cache
        the read pictures stay in memory. `notes` are kept in config.json beside what the constructor was given.

        Gives None when all epochs are done. On Ctrl-C or SIGTERM the batch in hand is finished, all is saved, and the
        signal's number is given. Raises InputError where training cannot begin or go on, FloatingPointError for a loss
        that is not finite.
        """
        training, held_out = batches.split(faces, self.seed)
        num_batches = self._count_batches(len(training))
        if not tf.config.list_physical_devices("GPU"):  # a step gives the same bits again, at no cost to speak of
            tf.config.experimental.enable_op_determinism()
        notes = {**(notes or {}), "faces": len(faces)}
        self._check_beginning(use_trained_model, len(faces))
        with contextlib.ExitStack() as stack:
            if self.is_chief:
                stack.enter_context(files.locked(self.save_dir))
                files.remove_partial(self.save_dir, "samples", "test", "checkpoint")
                checkpoints.remove_leftovers(self.save_dir / "checkpoint")
            if self.num_workers > 1:
                stack.enter_context(devices.lost_workers_named())
            self._begin(num_epochs, use_trained_model, use_init_model)
            self._check_workers_agree(training, num_epochs, learning_rate, decay_rate, loss_weights, balance)
            if not self.is_chief:  # it does all that the chief does, but what it writes is thrown away
                stack.callback(setattr, self, "save_dir", self.save_dir)
                self.save_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            shown = self._load_faces(held_out)
            load_image = functools.cache(self._load_image) if cache else self._load_image
            bad, named = {}, 0
            self._write_config(notes)
            save_image(self.save_dir / "test/input.png", pictures.grid(shown[0][:FACES_PER_SHEET]))
            record = stack.enter_context(run.Record(self.save_dir, int(self.step)))
            stop = stack.enter_context(run.StopRequest())
            saved_at = time.monotonic()

            def save():
                nonlocal saved_at
                record.flush()
                if self.is_chief:
                    self.save_checkpoint()
                saved_at = time.monotonic()

            def stopped_by():
                """The signal that ends training here, at the same batch on all workers."""
                heard = stop.signal
                if self.num_workers > 1 and self._sum_of_workers(heard or 0):
                    return heard or signal.SIGTERM
                return heard

            for epoch in range(int(self.epoch), num_epochs + 1):
                rate = learning_rate * decay_rate ** (max(epoch - 1, 0) // 2)
                for optimizer in self.optimizers.values():
                    optimizer.learning_rate.assign(rate)
                weights = tf.constant(loss_weights if epoch > 0 else (0, 0, 0), tf.float32)
                drawn = batches.epoch_batches(
                    training,
                    self.bins,
                    epoch=epoch,
                    first_batch=int(self.batch),
                    first_step=int(self.step),
                    batch_size=self.size_batch,
                    num_z_channels=self.num_z_channels,
                    load_image=load_image,
                    seed=self.seed,
                    bad=bad,
                    balance=balance,
                    shard=(self.worker, self.num_workers),
                )
                title = f"Epoch {epoch_name(epoch)}/{epoch_name(num_epochs)}"
                bar = tqdm(drawn, title, num_batches, initial=int(self.batch), unit="batch", disable=None)
                try:
                    for batch in bar:
                        losses, out = self.train_step(*batch, weights)
                        self.step.assign_add(1)
                        self.batch.assign_add(1)
                        step, done = int(self.step), int(self.batch) / num_batches
                        losses = {name: float(loss) for name, loss in losses.items()}
                        check_finite(losses, step)
                        record.write_step(step, epoch - 1 + done, losses, rate)
                        if step % HISTOGRAM_STEPS == 0:
                            record.write_histograms(step, {**out, "z_prior": batch[-1]})
                        bar.set_postfix_str(summary(losses))
                        heard = stopped_by()
                        if done < 1 and (heard or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                            save()
                        if done < 1 and heard:
                            return heard
                except dataset.TooManyBad:
                    save()
                    raise
                for path in list(bad)[named:]:
                    print(f"Another face stands in for {path}: {bad[path]}", flush=True)
                named = len(bad)

                step = int(self.step)
                sheets, loss = self._show_epoch(epoch_name(epoch), *shown)
                record.write_epoch(step, sheets, loss)
                pictures.plot_losses(self.save_dir / "loss_epoch.png", record.read("epoch"), record.read("EG_loss"))
                means = {name: record.read(name, num_batches).mean() for name in losses}
                print(f"{title}, step {step}: {summary(means)}, held-out L1 {loss:.4f}", flush=True)
                self.epoch.assign(epoch + 1)
                self.batch.assign(0)
                heard = stopped_by()
                if heard or epoch % CHECKPOINT_EPOCHS == 0 or epoch == num_epochs:
                    save()
                if heard:
                    return heard
        if self.is_chief:
            self._animate_training()
        return None

    def _count_batches(self, num_faces: int) -> int:
        """Batches in an epoch. Raises InputError where there are none, or where the devices cannot share them."""
        if num_faces < self.size_batch:
            raise InputError(
                f"{num_faces} faces to train on do not fill one batch of {self.size_batch}: "
                f"pass --batch_size {num_faces} or less"
            )
        if self.size_batch % self.replicas:
            share = max(1, self.size_batch // self.replicas)
            raise InputError(
                f"--batch_size {self.size_batch} cannot be shared equally by {self.replicas} devices: "
                f"pass {share * self.replicas} or another multiple of {self.replicas}"
            )
        if self.replicas > 1 and self.precision == "mixed_float16":
            # Keras looks for an overflow in a replica's own gradients, before they are summed: the others would go on
            raise InputError("mixed_float16 trains on one device only: take --precision mixed_bfloat16 or float32")
        return num_faces // self.size_batch

    @tf.function
    def _sum_of_workers(self, number):
        return self.strategy.reduce("SUM", self.strategy.run(lambda: tf.cast(number, tf.int64)), axis=None)

    def _check_workers_agree(self, *training) -> None:
        """Raise InputError where workers would train on other faces, with other flags or from another checkpoint."""
        mine = zlib.crc32(repr((self.config, int(self.step), training)).encode())
        if self._sum_of_workers(mine) != mine * self.replicas:
            raise InputError(
                "the workers differ in the flags, the faces or the checkpoint: give all of them the same command, "
                "the same data and one --savedir that they share"
            )

    def _load_image(self, path: str) -> np.ndarray:
        return ops.load_image(path, self.size_image, self.num_input_channels)

    def _read_faces(self, faces: Sequence[Face]) -> tuple[np.ndarray, list[Face]]:
        """(images uint8 [N, S, S, C], N faces) of those faces that can be read. Raises InputError where none can."""
        images, read = [], []
        for face in faces:
            try:
                images.append(self._load_image(face.path))
                read.append(face)
            except BadPicture as error:
                print(f"Left out: {error}")
        if not images:
            raise InputError(f"none of {len(faces)} faces can be read, such as {faces[0].path}")
        return np.stack(images), read

    def _load_faces(self, faces: Sequence[Face]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images uint8, age labels, gender labels) of those faces that can be read."""
        images, read = self._read_faces(faces)
        return images, self.bins.one_hot([face.age for face in read]), gender_labels([face.gender for face in read])

    def _show_epoch(self, name: str, images, ages, genders) -> tuple[dict[str, np.ndarray], float]:
        """Reconstruct the held-out faces and age their first row; gives the sheets written and the mean L1."""
        z = self._encode(images)
        samples = self._generate(z, ages, genders)
        row = slice(FACES_PER_SHEET)
        aged = self._at_every_age(z[row], genders[row])
        folder = self.save_dir
        sheets = {
            "samples": ops.save_batch_images(samples, folder / f"samples/{name}.png"),
            "test": ops.save_batch_images(np.concatenate(aged), folder / f"test/{name}.png", columns=aged.shape[1]),
        }
        return sheets, float(np.abs(ops.normalize(images) - samples).mean())

    def _animate_training(self) -> None:
        """Write demo_train.gif: the test sheets epoch by epoch, under the faces themselves."""
        test = self.save_dir / "test"
        paths = sorted(test.glob("p[0-9]*.png")) + sorted(test.glob("[0-9]*.png"))
        inputs = self._read_grid(test / "input.png")
        labels = ["input", *self.bins.names]
        frames = [
            pictures.sheet(np.concatenate([inputs, self._read_grid(path)]), labels, title=f"epoch {path.stem}")
            for path in paths
        ]
        pictures.save_animation(self.save_dir / "demo_train.gif", frames, frame_seconds=0.5, max_bytes=GIF_BYTES)

    def _read_grid(self, path: Path) -> np.ndarray:
        """The pictures of a saved grid, uint8 [rows, columns, S, S, C]."""
        picture = np.asarray(Image.open(path))
        rows, columns = (side // self.size_image for side in picture.shape[:2])
        return picture.reshape(rows, self.size_image, columns, self.size_image, -1).swapaxes(1, 2)

    # Checkpoints. The folder `checkpoint` holds ours or, from the reference program, a TensorFlow 1 one.

    def _networks(self) -> tuple[keras.Model, ...]:
        return self.E, self.G, self.D_z, self.D_img

    def _build_optimizers(self) -> None:
        with self.strategy.scope():
            for name, optimizer in self.optimizers.items():
                if not optimizer.built:
                    optimizer.build(self.variables[name])

    def _checkpoint(self) -> tf.train.Checkpoint:
        networks = {network.name: checkpoints.named_layers(network) for network in self._networks()}
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in self.optimizers.items()}
        checkpoint = tf.train.Checkpoint(**networks, **optimizers, epoch=self.epoch, batch=self.batch, step=self.step)
        checkpoint.save_counter  # noqa: B018  made when asked for, and `restore` looks for it
        return checkpoint

    def _check_beginning(self, use_trained_model: bool, num_faces: int) -> None:
        """Raise InputError where training would spoil what save_dir holds; nothing has been written yet."""
        config = read_config(self.save_dir)
        found = checkpoints.saved_checkpoints(self.save_dir / "checkpoint")
        if found and not use_trained_model:
            raise InputError(
                f"{self.save_dir} holds a trained model, which --use_trained_model False would overwrite: "
                "give another --savedir to keep both, or leave the flag out to go on with it"
            )
        if found and not config:
            raise InputError(
                f"{found[0]} came without a config.json, so it is not of a run of this program: "
                "to keep it, train into another --savedir"
            )
        before = config.get("training", {}).get("faces", num_faces)
        if before != num_faces:  # the held-out faces would be others, some of them trained on
            raise InputError(
                f"the data set has {num_faces:,} faces, but the run in {self.save_dir} was made with {before:,}: "
                "go on with the same faces, or give another --savedir"
            )
        self._check_architecture(self.save_dir)

    def _begin(self, num_epochs: int, use_trained_model: bool, use_init_model: bool) -> None:
        """Put networks, optimizers, epoch and step where training begins or goes on."""
        self._build_optimizers()
        if self.load_checkpoint():
            if self.epoch > num_epochs:
                print(f"All {num_epochs} epochs are done", flush=True)
                return
            print(f"Going on with epoch {epoch_name(int(self.epoch))} after step {int(self.step)}", flush=True)
            self._check_space()
            return
        if use_init_model and not self.load_checkpoint(SHIPPED_MODEL):
            raise InputError(f"no model ships in {SHIPPED_MODEL}: leave out --use_init_model")
        if not use_trained_model:
            self.epoch.assign(1 - PRETRAINING_EPOCHS)
        self._check_space()

    def _check_space(self) -> None:
        """Raise InputError where the disk is too full for what a run keeps."""
        variables = [v for part in (*self._networks(), *self.optimizers.values()) for v in part.variables]
        size = sum(math.prod(v.shape) * 4 for v in variables)  # bytes
        # two are kept while a third is written
        needed = (3 - len(checkpoints.saved_checkpoints(self.save_dir / "checkpoint"))) * size
        free = shutil.disk_usage(self.save_dir).free
        if free < needed:
            raise InputError(
                f"{self.save_dir} has {free:,} bytes free and checkpoints need {needed:,}: "
                "make room, or give a --savedir on another disk"
            )

    def save_checkpoint(self) -> str:
        """Write the state of training, as epoch and step stand, to save_dir/checkpoint; gives the path.

        The two latest whole checkpoints are kept. Raises InputError where it cannot be written; those before stay
        whole. Raises FloatingPointError, and writes nothing, where a weight is not finite.
        """
        step = int(self.step)
        # the loss would tell a step later, too late for the checkpoint
        sums = {v.path: float(tf.reduce_sum(v)) for network in self._networks() for v in network.variables}
        check_finite(sums, step)
        self._build_optimizers()
        self._write_config({})
        folder = self.save_dir / "checkpoint"
        prefix = str(folder / f"model-{step}")
        before = [path for path in checkpoints.saved_checkpoints(folder) if path not in {prefix, *self.damaged}]
        try:
            self._checkpoint().write(prefix)
            checkpoints.keep_checkpoints(folder, [*before[:1], prefix])
        except (tf.errors.OpError, OSError) as error:
            raise InputError(
                f"no checkpoint could be written to {folder} at step {step}: {reason(error)}; "
                "the one before is whole: make room and run the same command again"
            ) from error
        self.damaged.discard(prefix)
        return prefix

    def load_checkpoint(self, path: str | Path | None = None, networks_only: bool = False) -> bool:
        """Load the latest whole checkpoint in the folder `path` or else in save_dir; gives False where there is none.

        networks_only leaves the optimizers alone, and the discriminators too. A checkpoint of the reference program
        (TensorFlow 1) gives its weights alone, the shipped model those of E and G. A damaged checkpoint is named on
        stderr and the one before it loaded.
        Raises InputError where all are damaged, or for another architecture, naming the first number that differs.
        """
        folder = Path(path or self.save_dir)
        self._check_architecture(folder)
        folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
        found = checkpoints.saved_checkpoints(folder)
        for prefix in found:
            try:
                self._restore(prefix, networks_only)
            except InputError:
                raise
            except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
                raise InputError(f"{prefix} is of another run than config.json: {reason(error)}") from error
            except checkpoints.DAMAGE as error:
                self.damaged.add(prefix)
                print(f"{prefix} is damaged: {reason(error)}", file=sys.stderr, flush=True)
            else:
                return True
        if found:
            raise InputError(f"no checkpoint in {folder} is whole: move the folder away to begin anew")
        return False

    def _check_architecture(self, folder: Path) -> None:
        saved = (read_config(folder) or checkpoints.read_reference_config(folder)).get("model", {})
        for name in ARCHITECTURE:
            if name in saved and saved[name] != self.config[name]:
                raise InputError(
                    f"{folder} holds a model with {name} {saved[name]}, not {self.config[name]}: "
                    "use the same number, or another --savedir"
                )

    def _restore(self, prefix: str, networks_only: bool) -> None:
        if prefix.endswith(checkpoints.PACKED):
            checkpoints.unpack_weights(prefix, [self.E, self.G])
        elif checkpoints.is_reference(prefix):
            reader = tf.train.load_checkpoint(prefix)
            for network in self._networks():
                for variable in network.weights:
                    variable.assign(reader.get_tensor(checkpoints.reference_name(variable)))
        elif networks_only:
            checkpoint = tf.train.Checkpoint(E=checkpoints.named_layers(self.E), G=checkpoints.named_layers(self.G))
            checkpoint.restore(prefix).assert_existing_objects_matched().expect_partial()
        else:
            self._build_optimizers()
            self._checkpoint().restore(prefix).assert_consumed()

    @classmethod
    def load(cls, path: str | Path | None = None) -> "FaceAging":
        """The trained model of the run in the folder `path`, or else the shipped one, in float32, to age faces with.

        Its sizes come from the run's config.json, or for a checkpoint of the reference program off its variables.
        Raises InputError where there is no checkpoint.
        """
        path = Path(path or SHIPPED_MODEL)
        config = read_config(path) or checkpoints.read_reference_config(path)
        if not config:
            raise InputError(f"{path} holds no trained model: train one, or name another --savedir")
        model = cls(**{**config["model"], "precision": "float32"}, save_dir=path)
        if not model.load_checkpoint(networks_only=True):
            raise InputError(f"{path} holds no trained model yet: train one, or name another --savedir")
        return model

    def _write_config(self, notes: dict) -> None:
        """Keep how the run was made, once, when it begins."""
        if not read_config(self.save_dir):
            versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
            config = {"model": self.config, "training": notes, "versions": versions}
            with write_whole(self.save_dir / "config.json") as path:
                path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    # Measuring.

    def evaluate(self, faces: Sequence[Face], identity: bool = True, others: Sequence[Face] = ()) -> dict:
        """Measure how labelled faces are reconstructed, how the labels move them, and whether they stay the person.

        Gives {"overall": measures, "by_age": {bin: measures}, "by_gender": {gender: measures}, "units": MEASURES};
        measures are those of MEASURES and, by pair of bins, "label_movement_by_bin". Beside them stand "aging" and
        "identity", which support.aging_measures explains. Identity, of the first 100 faces, takes dlib a second a face;
        it is left out where it is not asked for or dlib is missing, which is said. It is held against how alike other
        people are: some of each gender and age bin of `others`, or else of the faces themselves. Pictures are read a
        batch at a time. What cannot be read is named and left out. Raises InputError where a whole batch cannot.
        """
        identity = identity and aging_measures.people_are_told_apart()
        parts, people = [], []
        for i in tqdm(range(0, len(faces), GENERATOR_BATCH), "Evaluating", unit="batch", delay=5, disable=None):
            images, read = self._read_faces(faces[i : i + GENERATOR_BATCH])
            years = np.array([face.age for face in read])
            ages, genders = self.bins.one_hot(years), gender_labels([face.gender for face in read])
            z = self._encode(images)
            x, made = ops.normalize(images).numpy(), self._generate(z, ages, genders)
            aged, other = self._at_every_age(z, genders), self._at_every_age(z, -genders)
            error = np.square(x - made).mean(axis=(1, 2, 3))
            parts.append(
                {
                    "years": years,
                    "bin": ages.argmax(axis=1),
                    "gender": genders[:, FEMALE],
                    "z": z,
                    "L1": np.abs(x - made).mean(axis=(1, 2, 3)),
                    "PSNR": 10 * np.log10(2**2 / np.maximum(error, 1e-10)),
                    "SSIM": [evaluation.ssim(a / 2 + 0.5, b / 2 + 0.5) for a, b in zip(x, made, strict=True)],
                    "sharp": [[evaluation.sharpness(a), evaluation.sharpness(b)] for a, b in zip(x, made, strict=True)],
                    "moved": np.stack(
                        [np.abs(b - a).mean(axis=(1, 2, 3)) for a, b in itertools.pairwise(aged)], axis=1
                    ),
                }
            )
            made, aged, other = (ops.denormalize(x).numpy() for x in (made, aged, other))
            parts[-1] |= aging_measures.look(images, aged, other, genders)
            if identity and i < aging_measures.FACES_COMPARED:
                people.append(aging_measures.compare_people(images, made, aged))
        each = joined(parts)
        by_age = {name: each["bin"] == i for i, name in enumerate(self.bins.names)}
        by_gender = {name: each["gender"] == label for name, label in (("male", -1), ("female", 1), ("unknown", 0))}
        measured = {
            "overall": self._measures(each),
            "by_age": {name: self._measures(each, chosen) for name, chosen in by_age.items() if chosen.any()},
            "by_gender": {name: self._measures(each, chosen) for name, chosen in by_gender.items() if chosen.any()},
            "units": MEASURES,
            "aging": aging_measures.aging(each, each["years"], self.bins),
        }
        if identity:
            compared = joined(people)
            bins_compared = each["bin"][: len(compared["rebuilt"])]
            different = self._read_faces(aging_measures.choose_others(others or faces, self.bins))
            distances = aging_measures.distances_of_others(*different, self.bins)
            measured["identity"] = aging_measures.identity(compared, bins_compared, distances, self.bins)
        return measured

    def _measures(self, each: dict[str, np.ndarray], chosen=slice(None)) -> dict:
        from scipy.stats import kstest, uniform  # slow to import, and only needed here

        each = {name: each[name][chosen] for name in ("z", "L1", "PSNR", "SSIM", "sharp", "moved")}
        prior = uniform(-1, 2).cdf
        face, reconstruction = each["sharp"].mean(axis=0)
        moved = each["moved"].mean(axis=0)
        measures = {
            "L1": each["L1"].mean(),
            "PSNR": each["PSNR"].mean(),
            "SSIM": each["SSIM"].mean(),
            "z_KS": kstest(each["z"], prior, method="asymp").statistic.mean(),
            "z_KS_pooled": kstest(each["z"].ravel(), prior, method="asymp").statistic,
            "sharpness": reconstruction / max(face, 1e-10),
            "label_movement": moved.mean(),
        }
        pairs = [f"{young} to {old}" for young, old in itertools.pairwise(self.bins.names)]
        return {
            "faces": len(each["L1"]),
            **{name: round(float(value), 5) for name, value in measures.items()},
            "label_movement_by_bin": {pair: round(float(value), 5) for pair, value in zip(pairs, moved, strict=True)},
        }

    # Aging.

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The latent codes z, float32 [N, num_z_channels] in (-1, 1), of uint8 pictures [N, H, W, C].

        Raises InputError for an array of another kind.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise InputError(f"pictures are uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}")
        if images.shape[1:] != (self.size_image, self.size_image, self.num_input_channels):
            images = np.stack([self._fit(to_image(image)) for image in images])
        return self._encode(images)

    def generate(self, z: np.ndarray, ages: Sequence[float], genders: Sequence[int]) -> np.ndarray:
        """Pictures, uint8 [N, S, S, C], of z [N, num_z_channels] at ages in years, genders 0 (male) or 1 (female).

        One of either stands for N of them: a single z makes as many pictures as there are ages.
        """
        (count,) = np.broadcast_shapes(np.shape(z)[:1], np.shape(ages), np.shape(genders))
        z = np.broadcast_to(np.asarray(z, np.float32), (count, self.num_z_channels))
        ages, genders = np.broadcast_to(ages, count), np.broadcast_to(genders, count)
        return ops.denormalize(self._generate(z, self.bins.interpolated(ages), gender_labels(genders))).numpy()

    def age(self, images: np.ndarray, ages: Sequence[float], genders: Sequence[int]) -> np.ndarray:
        """The faces of uint8 pictures [N, H, W, C] at other ages in years, as uint8 [N, S, S, C]; see `generate`."""
        return self.generate(self.encode(images), ages, genders)

    def _fit(self, image: Image.Image) -> np.ndarray:
        return fit_image(image, self.size_image, self.num_input_channels)

    def _encode(self, images: np.ndarray) -> np.ndarray:
        return in_batches(self._encode_batch, images)

    def _generate(self, z: np.ndarray, ages: np.ndarray, genders: np.ndarray) -> np.ndarray:
        """Images, float32 [N, S, S, C] in (-1, 1), of z and label vectors."""
        return in_batches(self._generate_batch, z, ages, genders)

    @tf.function(reduce_retracing=True)
    def _encode_batch(self, images):
        return self.E(ops.normalize(images), training=False)

    @tf.function(reduce_retracing=True)
    def _generate_batch(self, z, ages, genders):
        return self.G([z, ages, genders], training=False)

    def _at_every_age(self, z: np.ndarray, genders: np.ndarray) -> np.ndarray:
        """Each z [N, ...] with its gender label [N, 2] at every bin, young to old: float32 [bins, N, S, S, C]."""
        bins = len(self.bins)
        ages = np.repeat(self.bins.interpolated(self.bins.centres), len(z), axis=0)
        images = self._generate(np.tile(z, (bins, 1)), ages, np.tile(genders, (bins, 1)))
        return images.reshape(bins, len(z), *images.shape[1:])

    def test(
        self,
        paths: Sequence[str | Path],
        genders: Sequence[int] = (MALE, FEMALE),
        ages: Sequence[float] = (),
        animate: str = "",
        align: bool = False,
    ) -> int:
        """Draw the faces of pictures at other ages, in save_dir/test; gives how many faces were aged.

        Sheets of ten faces at every age, test_as_male.png and test_as_female.png, the further ones numbered from _2.
        Or, with ages in years, a picture for each face, age and gender; with animate, "gif" or "mp4", a film of each
        face from young to old and back. With align the faces of a photo are found, levelled and cropped first. What
        cannot be read is named and left out. Raises InputError if that is everything.
        """
        folder = self.save_dir / "test"
        portraits = self._read_portraits(paths, align)
        count = 0
        # a face at a time where each has pictures of its own, that the progress bar moves
        while row := list(itertools.islice(portraits, 1 if ages or animate else FACES_PER_SHEET)):
            z = self._encode(np.stack([portrait.image for portrait in row]))
            for gender in genders:
                if ages:
                    self._draw_ages(folder, row[0].name, z, gender, ages)
                if animate:
                    self._draw_film(folder / f"{row[0].name}_{GENDER_NAMES[gender]}.{animate}", z, gender)
                if not ages and not animate:
                    suffix = f"_{count // FACES_PER_SHEET + 1}" if count else ""
                    self._draw_sheet(folder / f"test_as_{GENDER_NAMES[gender]}{suffix}.png", row, z, gender)
            count += len(row)
        if not count:
            where = printable(str(paths[0])) if len(paths) == 1 else f"any of {len(paths):,} pictures"
            raise InputError(f"no face to age in {where}")
        return count

    def _read_portraits(self, paths: Sequence[str | Path], align: bool) -> Iterator["Portrait"]:
        if align:
            try:
                opencv()
            except InputError as error:
                print(f"{error}; until then the middle of each picture is taken", file=sys.stderr)
                align = False
        names, doubtful = set(), []
        for path in tqdm(paths, "Aging", unit="picture", disable=None):
            try:
                image = read_image(path)
            except BadPicture as error:
                tqdm.write(f"Left out: {error}")
                continue
            faces = [Image.fromarray(face) for face in align_faces(np.asarray(image))] if align else [image]
            if not faces:
                tqdm.write(f"Left out: {printable(str(path))}: no face found")
            _, *label = dataset.parse_name(Path(path).name) or (None, UNKNOWN)
            for face in faces:
                name = unused(Path(path).stem, names)
                fitted = self._fit(face)
                if not align and not looks_aligned(fitted):
                    doubtful.append(printable(str(path)))
                yield Portrait(name, fitted, () if UNKNOWN in label else tuple(label))
        if doubtful:
            print(
                f"{len(doubtful):,} of {len(paths):,} pictures not like the faces trained on, such as "
                f"{', '.join(doubtful[:3])}: --align True finds, levels and crops the faces of a photo",
                file=sys.stderr,
            )

    def _draw_sheet(self, path: Path, row: list["Portrait"], z: np.ndarray, gender: int) -> None:
        images = np.stack([portrait.image for portrait in row])
        rows, labels = [images], ["input"]
        labelled = [i for i, portrait in enumerate(row) if portrait.label]
        if labelled:
            # what the network keeps of a person: the reconstruction at the label that the file's name says
            ages, genders = zip(*(row[i].label for i in labelled), strict=True)
            kept = np.full_like(images, 255)
            kept[labelled] = ops.denormalize(
                self._generate(z[labelled], self.bins.one_hot(ages), gender_labels(genders))
            ).numpy()
            rows.append(kept)
            labels.append("as labelled")
        aged = ops.denormalize(self._at_every_age(z, gender_labels([gender] * len(z)))).numpy()
        title = f"as {GENDER_NAMES[gender]}"
        save_image(path, pictures.sheet(np.stack([*rows, *aged]), [*labels, *self.bins.names], title=title))

    def _draw_ages(self, folder: Path, name: str, z: np.ndarray, gender: int, ages: Sequence[float]) -> None:
        for age, image in zip(ages, self.generate(z, ages, gender), strict=True):
            save_image(folder / f"{name}_{age:g}_{GENDER_NAMES[gender]}.png", image)

    def _draw_film(self, path: Path, z: np.ndarray, gender: int) -> None:
        # so wide that the age fits above
        scale = -(-FILM_SIDE // self.size_image)
        older = np.linspace(self.bins.centres[0], self.bins.centres[-1], FILM_FRAMES // 2 + 1)
        ages = np.concatenate([older, older[-2:0:-1]])  # and back
        images = self.generate(z, ages, gender).repeat(scale, axis=1).repeat(scale, axis=2)
        frames = [
            pictures.sheet(image[np.newaxis, np.newaxis], [""], [f"{age:.0f} years"])
            for age, image in zip(ages, images, strict=True)
        ]
        pictures.save_animation(path, frames, FILM_SECONDS, max_bytes=FILM_BYTES)

    def blend(
        self,
        first: str | Path,
        second: str | Path,
        ages: Sequence[float] = (),
        genders: Sequence[int] = (),
        align: bool = False,
    ) -> Path:
        """Draw the way from one face to another at both their ages, as save_dir/test/blend_*.png; gives its path.

        Between them z and the gender's label change evenly. Ages in years and genders of the two, where not given, are
        what the files' names say. Raises InputError where they say nothing, or where a picture does not give one face.
        """
        faces = list(self._read_portraits([first, second], align))
        if len(faces) != 2:
            raise InputError(f"a blend takes two faces, but {first} and {second} give {len(faces)}")
        for given, name in ((ages, "age A,B"), (genders, "gender")):
            if not given and not all(face.label for face in faces):
                raise InputError(f"{first} and {second} are not both named after age and gender: give --{name}")
        ages = ages or [face.label[0] for face in faces]
        genders = genders or [face.label[1] for face in faces]
        if len(ages) != 2:
            raise InputError(f"a blend has two ages, not {len(ages)}: give --age A,B")
        images = np.stack([face.image for face in faces])
        way = np.linspace(0, 1, FACES_PER_SHEET, dtype=np.float32)[:, np.newaxis]
        z, gender = ((1 - way) * a + way * b for a, b in (self._encode(images), gender_labels(genders)))
        rows = np.full([3, len(way), *images.shape[1:]], 255, np.uint8)
        rows[0, [0, -1]] = images
        for row, age in zip(rows[1:], ages, strict=True):
            labels = np.repeat(self.bins.interpolated([age]), len(way), axis=0)
            row[:] = ops.denormalize(self._generate(z, labels, gender)).numpy()
        path = self.save_dir / "test" / f"blend_{faces[0].name}_{faces[1].name}.png"
        save_image(path, pictures.sheet(rows, ["input", *(f"at {age:g}" for age in ages)]))
        return path


def unused(name: str, names: set[str]) -> str:
    """The name, numbered from _2 where `names` has it already, to which it is added; case alone is no difference."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    free = next(one for one in itertools.chain([name], numbered) if one.casefold() not in names)
    names.add(free.casefold())
    return free


class Portrait(NamedTuple):
    """A face to age: what its pictures are called, uint8 [S, S, C], and (age, gender) where its file's name says so."""

    name: str
    image: np.ndarray
    label: tuple[int, ...]


def check_finite(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: the last checkpoint is kept; "
                "lower --learning_rate or --loss_weights, or take --precision float32"
            )


def epoch_name(epoch: int) -> str:
    """What an epoch is called where it shows: 01, 02, ...; pre-training, -9 to 0, is p01 to p10."""
    return f"{epoch:02d}" if epoch > 0 else f"p{epoch + PRETRAINING_EPOCHS:02d}"


def summary(losses: dict[str, float]) -> str:
    """The losses in a line, each discriminator's two as the sum that it minimises."""
    shown = {name: losses[f"{name}_loss"] for name in ("EG", "E_z", "G_img", "tv")}
    shown["D_z"] = losses["D_z_loss_prior"] + losses["D_z_loss_z"]
    shown["D_img"] = losses["D_img_loss_input"] + losses["D_img_loss_G"]
    return " ".join(f"{name} {loss:.3f}" for name, loss in shown.items())


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all parts, by name, one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_batches(function, *arrays: np.ndarray) -> np.ndarray:
    """What function gives for the rows of the arrays, computed GENERATOR_BATCH rows at a time."""
    parts = range(0, len(arrays[0]), GENERATOR_BATCH)
    return np.concatenate([function(*(array[i : i + GENERATOR_BATCH] for array in arrays)).numpy() for i in parts])
