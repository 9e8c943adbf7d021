"""Writing and reading checkpoints: those of a run, of the reference program, and the weights of an included model.

tf.train.CheckpointManager neither synchronises a checkpoint to the disk before naming it as the latest, nor returns to
the previous one if the latest is damaged.
"""

import contextlib
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers

from support import InputError, reason
from support.config import read_config
from support.files import atomic_write, sync_folder
from support.pretrained import WEIGHTS_FILE, load_quantized, reference_name

FOLDER = "checkpoint"  # a run's folder of checkpoints; a file of the same name in it lists them
# raised by TensorFlow for a checkpoint with a changed, missing or (IndexError) truncated file
DAMAGE_ERRORS = (tf.errors.OpError, OSError, IndexError)
STATE = ("model_checkpoint_path", "all_model_checkpoint_paths")  # keys of the file `checkpoint`: the latest, and all
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # an entry of TensorFlow 2's checkpoints, not of TensorFlow 1's
# the files of a checkpoint; their names, and the folder, while TensorFlow writes them
CHECKPOINT_PATTERN = re.compile(
    r"(?P<name>model-\d+)(?:\.(?:index|data-\d{5}-of-\d{5})(?P<half>\.tempstate\d+)?|(?P<folder>_temp))"
)
ARCHITECTURE = (  # hyperparameters that determine the shapes of the weights
    "size_image",
    "size_kernel",
    "num_input_channels",
    "num_encoder_channels",
    "num_z_channels",
    "num_categories",
    "num_gen_channels",
)


class Checkpoints:
    """Write and restore the checkpoints of a run.

    networks: by name. position: the variables of the training position (epoch, batch, step), by name.
    """

    def __init__(self, networks: dict[str, keras.Model], position: dict[str, tf.Variable]):
        self.networks = networks
        self.position = position
        self.damaged = set()  # not counted among the two that are kept

    def write(self, folder: Path, step: int, optimizers: dict[str, keras.optimizers.Optimizer]) -> str:
        """Write the training state to `folder` and keep the two latest complete checkpoints; return its path.

        Raises InputError if it cannot be written, or if the folder has a checkpoint of a later step.
        """
        prefix = str(folder / f"model-{step}")
        before = [path for path in saved_checkpoints(folder) if path not in {prefix, *self.damaged}]
        ours = [path for path in before if CHECKPOINT_PATTERN.fullmatch(f"{Path(path).name}.index")]
        if ours and int(ours[0].rpartition("-")[2]) > step:
            raise InputError(f"{ours[0]} is of a later step than {step}, the model's: use another save_dir")
        try:
            self._checkpoint(optimizers).write(prefix)
            keep_checkpoints(folder, [*before[:1], prefix])
        except (tf.errors.OpError, OSError) as error:
            raise InputError(
                f"the checkpoint of step {step} could not be written to {folder}: {reason(error)}; the previous one is "
                "complete: free disk space, or close programs that have a file there open, and run the same command "
                "again"
            ) from error
        self.damaged.discard(prefix)
        return prefix

    def restore_latest(self, folder: Path, optimizers: dict[str, keras.optimizers.Optimizer] | None) -> bool:
        """Load the latest complete checkpoint in the folder or in its FOLDER; return False if there is none.

        Without optimizers only E and G are loaded. A checkpoint of the reference program (TensorFlow 1) has only
        weights, an included model only those of E and G. A damaged checkpoint is reported on stderr and the previous
        one loaded. Raises InputError if all are damaged, or if one is of other networks.
        """
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        found = saved_checkpoints(folder)
        for prefix in found:
            try:
                self._restore(prefix, optimizers)
            except InputError:
                raise
            except (AssertionError, ValueError, tf.errors.InvalidArgumentError) as error:
                raise InputError(
                    f"{prefix} does not match config.json, {reason(error)}: restore one, or use another --savedir"
                ) from error
            except DAMAGE_ERRORS as error:
                self.damaged.add(prefix)
                print(f"{prefix} is damaged: {reason(error)}", file=sys.stderr, flush=True)
            else:
                return True
        if found:
            raise InputError(f"all checkpoints in {folder} are damaged: move the folder away to train from the start")
        return False

    def _restore(self, prefix: str, optimizers: dict[str, keras.optimizers.Optimizer] | None) -> None:
        E, G = self.networks["E"], self.networks["G"]
        if prefix.endswith(WEIGHTS_FILE):
            load_quantized(prefix, [E, G])
            return
        with readable(prefix) as path:
            if is_reference(path):
                reader = tf.train.load_checkpoint(path)
                for network in self.networks.values():
                    for variable in network.weights:
                        variable.assign(reader.get_tensor(reference_name(variable)))
            elif optimizers is None:
                checkpoint = tf.train.Checkpoint(E=named_layers(E), G=named_layers(G))
                checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
            else:
                self._checkpoint(optimizers).restore(path).assert_consumed()

    def _checkpoint(self, optimizers: dict[str, keras.optimizers.Optimizer]) -> tf.train.Checkpoint:
        networks = {name: named_layers(network) for name, network in self.networks.items()}
        optimizers = {f"optimizer_{name}": optimizer for name, optimizer in optimizers.items()}
        checkpoint = tf.train.Checkpoint(**networks, **optimizers, **self.position)
        checkpoint.save_counter.assign(0)  # created on access, and expected by `restore`
        return checkpoint


@contextlib.contextmanager
def readable(prefix: str) -> Iterator[str]:
    """Yield a path of the checkpoint that TensorFlow can read: it interprets [ in a path as a pattern."""
    if "[" not in prefix or os.name == "nt":
        yield prefix
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "link")
        link.symlink_to(Path(prefix).parent.absolute(), target_is_directory=True)
        yield str(link / Path(prefix).name)


def named_layers(network: keras.Model) -> dict[str, layers.Layer]:
    """Return the layers with weights, by name: saved by index, they would change with every added layer."""
    return {layer.name: layer for layer in network.layers if layer.weights}


def saved_checkpoints(folder: str | Path) -> list[str]:
    """Return the complete checkpoints in the folder, latest first, as paths without a suffix.

    They are listed in its file `checkpoint`; others are incomplete. If that file is missing or damaged, they are those
    with an index. A folder without checkpoints may contain the weights of an included model.
    """
    folder, state = Path(folder), Path(folder, FOLDER)
    text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
    # without folders: the reference program wrote absolute paths
    latest, every = (re.findall(rf'^{key}: "(?:.*[/\\])?(.+)"$', text, re.MULTILINE) for key in STATE)
    if not latest or latest != every[-1:]:
        indices = [path.stem for path in folder.iterdir() if path.suffix == ".index"] if folder.is_dir() else []
        # model-5 before model-10; a user's copy, model-5_best, is not resumed from
        ours = [name for name in indices if CHECKPOINT_PATTERN.fullmatch(f"{name}.index")]
        every = sorted(ours or indices, key=lambda name: (len(name), name))
    if not every and (folder / WEIGHTS_FILE).is_file():
        every = [WEIGHTS_FILE]
    return [str(folder / name) for name in reversed(every)]


def has_model(save_dir: Path) -> bool:
    """Return whether the folder of a run, or of an included model, contains a trained model."""
    return bool(saved_checkpoints(save_dir / FOLDER) or saved_checkpoints(save_dir))


def has_network(save_dir: Path, name: str) -> bool:
    """Return whether a run has a network of this name; all of its checkpoints contain it, or none."""
    for prefix in saved_checkpoints(save_dir / FOLDER) or saved_checkpoints(save_dir):
        # `restore_latest` reports a damaged one
        with contextlib.suppress(*DAMAGE_ERRORS), readable(prefix) as path:
            return any(variable.startswith(f"{name}/") for variable, _ in tf.train.list_variables(path))
    return False


def keep_checkpoints(folder: Path, prefixes: Sequence[str]) -> None:
    """List these in the file `checkpoint`, earliest first and the last one just written, and remove all others.

    The last one's files are synchronised to the disk before it is listed: after a power loss, all listed ones are
    complete.
    """
    latest, names = Path(prefixes[-1]).name, [Path(prefix).name for prefix in prefixes]
    for path, match in checkpoint_files(folder):
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
    """Remove the checkpoints that the folder's file `checkpoint` does not list, and incomplete ones.

    A user's own files beside them, such as model-5_best.index or a folder model-backup, are kept.
    """
    kept = [Path(prefix).name for prefix in saved_checkpoints(folder)]
    for path, match in checkpoint_files(folder):
        # on Windows a virus scanner may keep a file open; it is removed the next time
        with contextlib.suppress(PermissionError):
            if match["folder"] and path.is_dir():
                shutil.rmtree(path)
            elif not match["folder"] and path.is_file() and (match["half"] or match["name"] not in kept):
                path.unlink()


def checkpoint_files(folder: Path) -> list[tuple[Path, re.Match]]:
    """Return the files and folders whose whole name matches CHECKPOINT_PATTERN, each with its match."""
    matches = [(path, CHECKPOINT_PATTERN.fullmatch(path.name)) for path in folder.glob("model-*")]
    return [(path, match) for path, match in matches if match]


def check_architecture(folder: Path, config: dict) -> None:
    """Raise InputError if the folder contains a model of another architecture, naming the first number that differs."""
    saved = (read_config(folder) or read_reference_config(folder)).get("model", {})
    for name in ARCHITECTURE:
        if name in saved and saved[name] != config[name]:
            raise InputError(
                f"{folder} has a model with {name} {saved[name]}, not {config[name]}: use the same number, or another "
                "--savedir"
            )


def check_space(save_dir: Path, variables: Iterable) -> None:
    """Raise InputError if the disk has too little space for the checkpoints of a run with these variables."""
    size = sum(math.prod(v.shape) * 4 for v in variables)  # bytes
    # two are kept while a third is written
    needed = (3 - len(saved_checkpoints(save_dir / FOLDER))) * size
    free = shutil.disk_usage(save_dir).free
    if free < needed:
        raise InputError(
            f"{save_dir} has {free:,} bytes free and checkpoints need {needed:,}: free disk space, or use a "
            "--savedir on another disk"
        )


def is_reference(prefix: str) -> bool:
    """Return whether a checkpoint is the reference program's, which was written by TensorFlow 1."""
    return not tf.train.load_checkpoint(prefix).has_tensor(OBJECT_GRAPH)


def read_reference_config(save_dir: str | Path) -> dict:
    """Return the config of a run of the reference program, inferred from the shapes of its weights.

    {} if save_dir has no checkpoint of that program. Raises InputError for one of another program, or a damaged one.
    """
    found = saved_checkpoints(Path(save_dir) / FOLDER)
    if not found:
        return {}
    try:
        with readable(found[0]) as path:
            if not is_reference(path):
                return {}
            shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map()
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
        raise InputError(
            f"{found[0]} is not a checkpoint of this program, it has no {error}: use another --savedir"
        ) from error
    except DAMAGE_ERRORS as error:
        raise InputError(f"{found[0]} is damaged, {reason(error)}: restore it, or use another --savedir") from error
    return {"model": model, "training": {}, "versions": {}}
