"""Private or undocumented interfaces of TensorFlow and Keras; each docstring names the user and what would break."""

import inspect
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from support.checkpoints import OBJECT_GRAPH, STATE


def test_the_context_accepts_a_heartbeat_timeout():
    """support.devices: without it a busy worker is considered dead after 10 s; nothing else breaks."""
    from tensorflow.python.eager import context

    configure = context.context().configure_coordination_service
    assert "heartbeat_timeout_in_ms" in inspect.signature(configure).parameters


def test_adam_has_the_attributes_that_fast_ops_uses():
    """support.fast_ops.Adam: without it use keras.optimizers.Adam, which is slower."""
    variable = keras.Variable(np.zeros([2, 3], np.float32))
    adam = keras.optimizers.Adam()
    adam.build([variable])
    index = adam._get_variable_index(variable)
    assert adam._momentums[index].shape == adam._velocities[index].shape == variable.shape
    assert hasattr(adam._momentums[index].value, "handle")


def test_layers_have_the_methods_that_fast_ops_overrides():
    """support.fast_ops: without convolution_op, or with another call, they would be Keras' own layers, and slower."""
    assert list(inspect.signature(layers.Conv2D.convolution_op).parameters) == ["self", "inputs", "kernel"]
    assert list(inspect.signature(layers.Conv2DTranspose.call).parameters) == ["self", "inputs"]
    assert list(inspect.signature(layers.BatchNormalization.call).parameters) == ["self", "inputs", "training", "mask"]


def test_gradients_can_be_recorded_on_a_tape():
    """support.fast_ops.custom_gradient: without it use tf.custom_gradient, which keeps each loaded model in memory."""
    from tensorflow.python.eager import record

    assert list(inspect.signature(record.record_operation).parameters)[:4] == [
        "op_type",
        "output_tensors",
        "input_tensors",
        "backward_function",
    ]
    assert callable(record.stop_recording)


def test_keras_reads_its_folder_from_a_variable():
    """support.restore_environment: without it Keras would download to /dev/null."""
    from keras.src.backend import config

    assert config.keras_home() == config._KERAS_DIR


@pytest.fixture
def prefix(tmp_path):
    """A checkpoint that tf.train.Checkpoint has numbered and listed in the file `checkpoint`."""
    return tf.train.Checkpoint(x=tf.Variable(1.0)).save(str(tmp_path / "model"))


def test_a_checkpoint_has_an_object_graph(prefix):
    """support.checkpoints.is_reference: without it a checkpoint would be read as the reference program's."""
    assert tf.train.load_checkpoint(prefix).has_tensor(OBJECT_GRAPH)


def test_the_state_file_is_written_as_it_is_read(prefix, tmp_path):
    """support.checkpoints.saved_checkpoints: without it those of the reference program are not found."""
    lines = (tmp_path / "checkpoint").read_text().splitlines()
    assert lines[:2] == [f'{STATE[0]}: "model-1"', f'{STATE[1]}: "model-1"']


def test_a_save_counter_is_created_on_access(tmp_path):
    """support.checkpoints: without it no earlier checkpoint could be restored."""
    checkpoint = tf.train.Checkpoint(x=tf.Variable(1.0))
    checkpoint.save_counter.assign(0)
    names = [name for name, _ in tf.train.list_variables(checkpoint.write(str(tmp_path / "model")))]
    assert "save_counter/.ATTRIBUTES/VARIABLE_VALUE" in names


def test_tensorboard_accepts_a_session_log():
    """support.run.TrainingLog: without it a resumed run's curves have steps twice."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    assert Event(step=1, session_log=SessionLog(status=SessionLog.START)).session_log.status == SessionLog.START
    assert hasattr(EventFileWriter, "add_event")


@pytest.mark.parametrize(
    "name", ["config.experimental.enable_op_determinism", "config.experimental.get_device_details"]
)
def test_experimental_functions_exist(name):
    """support.devices: without the first, resumed runs differ in the last bits; without the second, auto precision."""
    part = tf
    for each in name.split("."):
        part = getattr(part, each)
    assert callable(part)


def test_a_strategy_returns_its_local_results():
    """support.devices.Devices.run: without it no histograms of several devices."""
    assert tf.distribute.get_strategy().experimental_local_results(3) == (3,)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM of this kind")
def test_a_signal_handler_of_tensorflow_can_be_replaced():
    """support.devices.choose_strategy: without it SIGTERM does not save a worker's run."""
    handler = signal.getsignal(signal.SIGTERM)
    assert signal.signal(signal.SIGTERM, handler) == handler
