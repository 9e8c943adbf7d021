"""Weights on the disk: a run's two latest, the reference program's, a packed model; open it where a resume fails.

TensorFlow's own CheckpointManager is not used: it neither brings a checkpoint to the disk before naming it, nor goes
back to the one before where the latest is damaged.
"""

import contextlib
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

from support.config import read_config
from support.errors import InputError, reason
from support.files import atomic_write, sync_folder
from support.pretrained import PACKED, load_quantized, reference_name

FOLDER = "checkpoint"  # the folder of a run that holds its checkpoints; in it a file of this name lists them
# what TensorFlow raises for a checkpoint of which a file is changed, missing or (IndexError) cut short
DAMAGE = (tf.errors.OpError, OSError, IndexError)
STATE = ("model_checkpoint_path", "all_model_checkpoint_paths")  # keys of the file `checkpoint`: the latest, and all
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # an entry that TensorFlow 2's checkpoints have and TensorFlow 1's lack
# the files of a checkpoint, their names while TensorFlow writes them, and the folder in which it does
OURS = re.compile(r"(?P<name>model-\d+)(?:\.(?:index|data-\d{5}-of-\d{5})(?P<half>\.tempstate\d+)?|(?P<folder>_temp))")
ARCHITECTURE = (  # the sizes that a checkpoint and the networks it is loaded into must share
    "size_image",
    "size_kernel",
    "num_input_channels",
    "num_encoder_channels",
    "num_z_channels",
    "num_categories",
    "num_gen_channels",
)


class Checkpoints:
    """The checkpoints of a run, each written whole or not at all; one that is found damaged is never counted as kept.

    networks: those of the run, by name. position: the variables that say where training stands, by name.
    """

    def __init__(self, networks: dict[str, keras.Model], position: dict[str, tf.Variable]):
        self.networks = networks
        self.position = position
        self.damaged = set()

    def write(self, folder: Path, step: int, optimizers: dict[str, keras.optimizers.Optimizer]) -> str:
        """Write the state of training to `folder`, where the two latest whole checkpoints are kept; returns its path.

        Raises InputError where it cannot be written; those before stay whole.
        """
        prefix = str(folder / f"model-{step}")
        before = [path for path in saved_checkpoints(folder) if path not in {prefix, *self.damaged}]
        try:
            self._checkpoint(optimizers).write(prefix)
            keep_checkpoints(folder, [*before[:1], prefix])
        except (tf.errors.OpError, OSError) as error:
            raise InputError(
                f"no checkpoint could be written to {folder} at step {step}: {reason(error)}; "
                "the one before is whole: make room, or close what holds a file there open, and run the same command "
                "again"
            ) from error
        self.damaged.discard(prefix)
        return prefix

    def restore_latest(self, folder: Path, optimizers: dict[str, keras.optimizers.Optimizer] | None) -> bool:
        """Load the latest whole checkpoint in the folder or in its FOLDER; returns False where there is none.

        Without optimizers only E and G are loaded. A checkpoint of the reference program (TensorFlow 1) has only
        weights, a packed model only those of E and G. A damaged checkpoint is named on stderr and the one before it
        loaded. Raises InputError where all are damaged, or one is of other networks.
        """
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        found = saved_checkpoints(folder)
        for prefix in found:
            try:
                self._restore(prefix, optimizers)
            except InputError:
                raise
            except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
                raise InputError(f"{prefix} is of another run than config.json: {reason(error)}") from error
            except DAMAGE as error:
                self.damaged.add(prefix)
                print(f"{prefix} is damaged: {reason(error)}", file=sys.stderr, flush=True)
            else:
                return True
        if found:
            raise InputError(f"no checkpoint in {folder} is whole: move the folder away to begin anew")
        return False

    def _restore(self, prefix: str, optimizers: dict[str, keras.optimizers.Optimizer] | None) -> None:
        E, G = self.networks["E"], self.networks["G"]
        if prefix.endswith(PACKED):
            load_quantized(prefix, [E, G])
        elif is_reference(prefix):
            reader = tf.train.load_checkpoint(prefix)
            for network in self.networks.values():
                for variable in network.weights:
                    variable.assign(reader.get_tensor(reference_name(variable)))
        elif optimizers is None:
            checkpoint = tf.train.Checkpoint(E=named_layers(E), G=named_layers(G))
            checkpoint.restore(prefix).assert_existing_objects_matched().expect_partial()
        else:
            self._checkpoint(optimizers).restore(prefix).assert_consumed()

    def _checkpoint(self, optimizers: dict[str, keras.optimizers.Optimizer]) -> tf.train.Checkpoint:
        networks = {name: named_layers(network) for name, network in self.networks.items()}
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in optimizers.items()}
        checkpoint = tf.train.Checkpoint(**networks, **optimizers, **self.position)
        checkpoint.save_counter.assign(0)  # TensorFlow makes it when it is asked for, and `restore` looks for it
        return checkpoint


def named_layers(network: keras.Model) -> dict[str, layers.Layer]:
    """Returns the layers with weights, by name. Keras saves them by place: a new layer would spoil all checkpoints."""
    return {layer.name: layer for layer in network.layers if layer.weights}


def saved_checkpoints(folder: str | Path) -> list[str]:
    """Returns the checkpoints in the folder that were written to their end, latest first: their paths without a suffix.

    They are those named in its file `checkpoint`; what is not named there is the rest of a write that was cut short.
    Where that file is itself lost or damaged, they are those with an index. A folder without any may hold a packed
    model. Raises InputError for a path of which TensorFlow could read none.
    """
    if set("*?[") & set(str(folder)):
        raise InputError(f"{folder}: TensorFlow reads nothing from a path with * ? or [, give another --savedir")
    folder, state = Path(folder), Path(folder, FOLDER)
    text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
    # paths are cut off: the reference program may have written the folder that it ran in
    latest, every = (re.findall(rf'^{key}: "(?:.*[/\\])?(.+)"$', text, re.MULTILINE) for key in STATE)
    if not latest or latest != every[-1:]:
        indices = [path.stem for path in folder.iterdir() if path.suffix == ".index"] if folder.is_dir() else []
        # model-5 before model-10; what a user has copied beside them, model-5_best, is not gone on from
        ours = [name for name in indices if OURS.fullmatch(f"{name}.index")]
        every = sorted(ours or indices, key=lambda name: (len(name), name))
    if not every and (folder / PACKED).is_file():
        every = [PACKED]
    return [str(folder / name) for name in reversed(every)]


def holds_model(save_dir: Path) -> bool:
    """Returns whether the folder of a run, or of a packed model, holds a trained model."""
    return bool(saved_checkpoints(save_dir / FOLDER) or saved_checkpoints(save_dir))


def holds_network(save_dir: Path, name: str) -> bool:
    """Returns whether a run has a network of this name; it is in all of its checkpoints or in none."""
    for prefix in saved_checkpoints(save_dir / FOLDER):
        try:
            return any(variable.startswith(f"{name}/") for variable, _ in tf.train.list_variables(prefix))
        except DAMAGE:  # `restore_latest` names it
            continue
    return False


def keep_checkpoints(folder: Path, prefixes: Sequence[str]) -> None:
    """Have the file `checkpoint` name these, earliest first and the last one just written, and remove all others.

    The last one's files reach the disk itself before it is named: no power loss can make `checkpoint` name one that is
    not whole, nor take the one before.
    """
    latest, names = Path(prefixes[-1]).name, [Path(prefix).name for prefix in prefixes]
    for path, match in our_files(folder):
        if match["name"] == latest and path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
    with atomic_write(folder / FOLDER) as path:
        lines = zip([STATE[0], *(STATE[1] for _ in names)], [latest, *names], strict=True)
        path.write_text("".join(f'{key}: "{name}"\n' for key, name in lines))
    sync_folder(folder)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the checkpoints that the folder's file `checkpoint` does not name, half-written ones too.

    What a user keeps beside them, such as model-5_best.index or a folder model-backup, is none of ours.
    """
    kept = [Path(prefix).name for prefix in saved_checkpoints(folder)]
    for path, match in our_files(folder):
        # what Windows does not let go of, as a virus scanner reads it, is removed the next time
        with contextlib.suppress(PermissionError):
            if match["folder"] and path.is_dir():
                shutil.rmtree(path)
            elif not match["folder"] and path.is_file() and (match["half"] or match["name"] not in kept):
                path.unlink()


def our_files(folder: Path) -> list[tuple[Path, re.Match]]:
    """Returns what has the name of a checkpoint's file in the folder, to the letter, each with the match of OURS."""
    matches = [(path, OURS.fullmatch(path.name)) for path in folder.glob("model-*")]
    return [(path, match) for path, match in matches if match]


def check_architecture(folder: Path, config: dict) -> None:
    """Raise InputError where the folder holds a model of other sizes, naming the first number that differs."""
    saved = (read_config(folder) or read_reference_config(folder)).get("model", {})
    for name in ARCHITECTURE:
        if name in saved and saved[name] != config[name]:
            raise InputError(
                f"{folder} holds a model with {name} {saved[name]}, not {config[name]}: "
                "use the same number, or another --savedir"
            )


def check_space(save_dir: Path, variables: Iterable) -> None:
    """Raise InputError where the disk is too full for the checkpoints of these variables that a run will keep."""
    size = sum(math.prod(v.shape) * 4 for v in variables)  # bytes
    # two are kept while a third is written
    needed = (3 - len(saved_checkpoints(save_dir / FOLDER))) * size
    free = shutil.disk_usage(save_dir).free
    if free < needed:
        raise InputError(
            f"{save_dir} has {free:,} bytes free and checkpoints need {needed:,}: "
            "make room, or give a --savedir on another disk"
        )


def is_reference(prefix: str) -> bool:
    """Returns whether a checkpoint is the reference program's: TensorFlow 1, which wrote it, keeps no object graph."""
    return not tf.train.load_checkpoint(prefix).has_tensor(OBJECT_GRAPH)


def read_reference_config(save_dir: str | Path) -> dict:
    """Returns the run's config, inferred from the shapes of the weights in a checkpoint of the reference program.

    {} where save_dir holds none. Raises InputError for a checkpoint of another program, and for a damaged one.
    """
    found = saved_checkpoints(Path(save_dir) / FOLDER)
    try:
        if not found or not is_reference(found[0]):
            return {}
        shapes = tf.train.load_checkpoint(found[0]).get_variable_to_shape_map()
        size_kernel, _, num_input_channels, num_encoder_channels = shapes["E_conv0/w"]
        num_layers = sum(name.startswith("E_conv") and name.endswith("/w") for name in shapes)
        # age and gender, tiled to the same length, are concatenated to the feature maps of D_img's first layer
        num_categories = (shapes["D_img_conv1/w"][2] - shapes["D_img_conv0/w"][3]) // 2
        model = {
            "size_image": 2 ** (num_layers + size_kernel // 2),
            "size_kernel": size_kernel,
            "num_input_channels": num_input_channels,
            "num_encoder_channels": num_encoder_channels,
            "num_z_channels": shapes["E_fc/w"][1],
            "num_categories": num_categories,
            "num_gen_channels": shapes["G_deconv0/w"][3],
        }
    except KeyError as error:
        raise InputError(f"{found[0]} is no checkpoint of this program: it has no {error}") from error
    except DAMAGE as error:
        raise InputError(f"{found[0]} is damaged: {reason(error)}") from error
    return {"model": model, "training": {}, "versions": {}}
