"""Losses by name, and those beyond the paper: labels hidden from z, and features of D_img matched."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf

import main
from FaceAging import FaceAging, status_line
from support.batches import BatchLoader
from support.config import RECIPES, read_config
from support.flags import parse_flags
from support.labels import AgeBins, gender_labels
from support.losses import AUXILIARY_NETWORKS, PRESETS, TERMS, Step, Term, complete_weights, feature_loss, label_losses
from support.pretrained import INCLUDED_MODELS
from tests.conftest import TINY, TINY_FLAGS
from tests.test_training import LOSSES, read_events, read_rows, same, weights_of

PAPER = (1e-4, 1e-4, 1e-4)
AGING = (3e-4, 1e-4, 1e-4, 5e-3, 0.1)
ADDED = ["E_label_loss", "C_z_loss", "G_feature_loss"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, faces):
    """A run of two epochs with both losses and mirrored faces."""
    model = FaceAging(**TINY, save_dir=tmp_path_factory.mktemp("run") / "save")
    assert model.train(faces, num_epochs=2, loss_weights=AGING, flip=True) is None
    return model


@pytest.fixture
def model():
    model = FaceAging(**TINY)
    model.add_network("C_z")
    return model


def test_additional_losses_are_logged_by_name(run):
    assert list(read_rows(run.save_dir)[0]) == ["step", "epoch", *LOSSES, *ADDED, "learning_rate"]
    assert set(ADDED) <= set(read_events(run.save_dir).Tags()["tensors"])


def test_resumed_run_with_additional_losses_equals_an_uninterrupted_one(run, tmp_path, faces):
    for epochs in (1, 2):
        resumed = FaceAging(**TINY, save_dir=tmp_path)
        resumed.train(faces, num_epochs=epochs, loss_weights=AGING, flip=True)
    assert same(weights_of(run), weights_of(resumed))
    assert same([w.numpy() for w in run.networks["C_z"].weights], [w.numpy() for w in resumed.networks["C_z"].weights])
    assert (tmp_path / "losses.csv").read_text() == (run.save_dir / "losses.csv").read_text()


def test_results_do_not_depend_on_models_built_before(run, tmp_path, faces):
    for _ in range(3):
        FaceAging(**TINY)
    again = FaceAging(**TINY, save_dir=tmp_path)
    again.train(faces, num_epochs=2, loss_weights=AGING, flip=True)
    assert same(weights_of(run), weights_of(again))


def test_weight_zero_equals_no_loss(tmp_path, faces):
    models = [FaceAging(**TINY, save_dir=tmp_path / name) for name in ("three", "five")]
    for model, weights in zip(models, (PAPER, (*PAPER, 0, 0)), strict=True):
        model.train(faces, num_epochs=1, loss_weights=weights)
    assert "C_z" not in models[1].networks
    assert same(weights_of(models[0]), weights_of(models[1]))
    records = [(tmp_path / name / "losses.csv").read_text() for name in ("three", "five")]
    assert records[0] == records[1]
    names = [[name for name, _ in tf.train.list_variables(str(tmp_path / n / "checkpoint"))] for n in ("three", "five")]
    assert names[0] == names[1]


def test_label_loss_and_feature_loss_are_independent(tmp_path, faces):
    columns = {}
    for name, weights in (("label", (*PAPER, 1e-2, 0)), ("feature", (*PAPER, 0, 0.1))):
        FaceAging(**TINY, save_dir=tmp_path / name).train(faces[:20], num_epochs=1, loss_weights=weights)
        columns[name] = set(read_rows(tmp_path / name)[0])
    assert columns["label"] - columns["feature"] == {"E_label_loss", "C_z_loss"}
    assert columns["feature"] - columns["label"] == {"G_feature_loss"}


def test_label_losses_equal_their_definition(model):
    z = np.random.default_rng(0).uniform(-1, 1, (4, 50)).astype(np.float32)
    ages, genders = AgeBins().one_hot([3, 25, 45, 80]), gender_labels([0, 1, 1, -1])
    losses = label_losses(Step(model.networks, None, ages, genders, {"z": z}, None, {}))
    logits = [one.numpy() for one in model.networks["C_z"](z)]
    log_softmax = [one - np.log(np.exp(one).sum(axis=1, keepdims=True)) for one in logits]
    expected = sum(
        -((labels + 1) / 2 * one).sum(axis=1).mean() for labels, one in zip((ages, genders), log_softmax, strict=True)
    )
    assert float(losses["C_z_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(losses["E_label_loss"]) == pytest.approx(-sum(one.mean() for one in log_softmax), rel=1e-5)


def test_label_loss_hides_the_labels_from_z(tmp_path, faces):
    """With a weight far above that of the reconstruction, the classifier's loss stays higher than without."""
    final_losses = []
    for name, weight in (("negligible", 1e-9), ("large", 10.0)):
        FaceAging(**TINY, save_dir=tmp_path / name).train(
            faces, num_epochs=24, learning_rate=1e-3, loss_weights=(*PAPER, weight, 0)
        )
        final_losses.append(np.mean([float(row["C_z_loss"]) for row in read_rows(tmp_path / name)[-10:]]))
    assert final_losses[1] > final_losses[0] + 0.05


def test_classifier_has_its_own_learning_rate(run):
    rates = {name: float(optimizer.learning_rate) for name, optimizer in run.optimizers.items()}
    assert rates["C_z"] == pytest.approx(AUXILIARY_NETWORKS["C_z"].rate * rates["EG"]) == pytest.approx(1e-3)


def test_only_C_z_is_updated_several_times_per_step(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    labels = AgeBins().one_hot([3, 25, 45, 80]), gender_labels([0, 1, 1, 0])
    weights = {name: tf.constant(weight) for name, weight in complete_weights({"label": 0.02}).items()}
    models = {}
    for updates in (1, 5):
        monkeypatch.setitem(AUXILIARY_NETWORKS, "C_z", AUXILIARY_NETWORKS["C_z"]._replace(updates=updates))
        models[updates] = model = FaceAging(**TINY)
        model.add_network("C_z")
        model.train_step(images, *labels, tf.zeros([4, 50]), weights)
        iterations = {name: int(optimizer.iterations) for name, optimizer in model.optimizers.items()}
        assert iterations == {"EG": 1, "D_z": 1, "D_img": 1, "C_z": updates}
    assert same(*(weights_of(model) for model in models.values()))
    z = models[5].encode(images)
    errors = {
        updates: float(label_losses(Step(model.networks, None, *labels, {"z": z}, None, {}))["C_z_loss"])
        for updates, model in models.items()
    }
    assert errors[5] < errors[1]


def test_feature_loss_equals_its_definition():
    real, generated = (
        [tf.zeros([2, 4, 4, 3]), tf.ones([2, 2, 2, 5])],
        [tf.ones([2, 4, 4, 3]), 3 * tf.ones([2, 2, 2, 5])],
    )
    step = Step({}, None, None, None, {"D_input_maps": real, "D_G_maps": generated}, None, {})
    assert float(feature_loss(step)["G_feature_loss"]) == 1 + 2


def test_feature_maps_are_those_of_the_discriminator(model):
    """The feature maps are rectified, and the logits equal those of D_img."""
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    labels = AgeBins().one_hot([3, 25, 45, 80]), gender_labels([0, 1, 1, 0])
    logits, *maps = model.D_img_features([images, *labels], training=False)
    assert [tuple(one.shape[1:]) for one in maps] == [(16, 16, 16), (8, 8, 32), (4, 4, 64), (2, 2, 128)]
    assert all(float(tf.reduce_min(one)) == 0 for one in maps)
    np.testing.assert_array_equal(logits, model.D_img([images, *labels], training=False))


def batches_of(faces, flip, first=0):
    def load_image(path):
        return np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

    batches = BatchLoader(faces, AgeBins(), load_image, size_batch=10, num_z_channels=5, seed=1, flip=flip)
    return [images for images, *_ in batches.of(1, first, step=first)]


def test_flip_mirrors_half_of_every_batch(faces):
    plain, mirrored, again = batches_of(faces, False), batches_of(faces, True), batches_of(faces, True)
    drawn = []
    for one, other in zip(plain, mirrored, strict=True):
        flipped = (other == one[:, :, ::-1]).all(axis=(1, 2, 3))
        assert flipped.sum() == 5 and ((other == one).all(axis=(1, 2, 3)) != flipped).all()
        drawn.append(tuple(flipped))
    assert len(set(drawn)) > 1
    assert same(mirrored, again)
    assert same(mirrored[3:], batches_of(faces, True, first=3))


def test_main_trains_with_the_aging_recipe_and_records_its_flags(workplace, capsys):
    flags = ["--dataset=drawn", "--recipe=aging", "--num_z_channels=20", *TINY_FLAGS]
    assert main.main([*flags, "--epoch=1"]) == 0
    assert "label" in capsys.readouterr().out
    config = json.loads((workplace / "save/config.json").read_text())
    assert config["model"]["num_z_channels"] == 20
    assert config["training"]["flip"] and config["training"]["loss_weights"] == RECIPES["aging"]["loss_weights"]
    assert main.main(["--epoch=2"]) == 0
    assert main.main(["--is_train=False", "--testdir=data/drawn", "--age=30"]) == 0  # aging does not need C_z
    for flag in (
        "--loss_weights=default",
        "--loss_weights=label=0.1",
        "--flip=False",
        "--num_z_channels=50",
        "--recipe=paper",
    ):
        capsys.readouterr()
        assert main.main([flag, "--epoch=3"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_run_without_a_recorded_flip_resumes_without_it(workplace, capsys):
    assert main.main(["--dataset=drawn", *TINY_FLAGS, "--epoch=1"]) == 0
    path = workplace / "save/config.json"
    config = json.loads(path.read_text())
    del config["training"]["flip"]
    path.write_text(json.dumps(config))
    assert main.main(["--flip=True", "--epoch=2"]) == 2
    assert "--flip is True" in capsys.readouterr().err
    assert main.main(["--epoch=2"]) == 0
    with (workplace / "save/losses.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10


@pytest.mark.parametrize(
    "text", ["1,2,3,4", "1,2,3,4,-5", "1,2,3,4,inf", "aged", "label=x", "age=1", "label=-1", "tv=nan"]
)
def test_invalid_loss_weights_are_rejected(text, capsys):
    with pytest.raises(SystemExit):
        parse_flags([f"--loss_weights={text}"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "such as G_img=3e-4,label=0.02" in error


def test_loss_weights_are_parsed_as_preset_names_or_list():
    def parse(*argv):
        return parse_flags(argv)[0].loss_weights

    assert parse() == parse("--loss_weights=2017") == PRESETS["default"]
    assert parse("--loss_weights=released") == PRESETS["released"]
    assert parse("--loss_weights=paper") == parse("--loss_weights=section41") == PRESETS["section41"]
    assert parse("--loss_weights=0.1,0.2,0.3") == {"G_img": 0.1, "E_z": 0.2, "tv": 0.3}
    assert parse("--loss_weights=0.1,0.2,0.3,0,0.5") == {"G_img": 0.1, "E_z": 0.2, "tv": 0.3, "feature": 0.5}
    assert parse("--loss_weights=feature=0.1, G_img=2e-4") == {"G_img": 2e-4, "E_z": 1e-4, "tv": 1e-4, "feature": 0.1}
    assert parse("--recipe=aging") == RECIPES["aging"]["loss_weights"]
    assert parse("--recipe=aging", "--loss_weights=released") == PRESETS["released"]
    assert parse("--recipe=aging", "--loss_weights=0.1,0.2,0.3") == {"G_img": 0.1, "E_z": 0.2, "tv": 0.3}
    assert parse("--recipe=aging", "--loss_weights=label=0,E_z=0.5") == {
        **{name: weight for name, weight in RECIPES["aging"]["loss_weights"].items() if name != "label"},
        "E_z": 0.5,
    }


def test_flags_take_precedence_over_the_recipe():
    flags, explicit = parse_flags(["--recipe=aging", "--flip=False"])
    assert (flags.flip, flags.balance, flags.num_z_channels) == (False, True, 200)
    assert set(RECIPES["aging"]) <= explicit


def test_added_term_is_trained_logged_and_recorded(run, workplace, monkeypatch, faces, capsys):
    def brightness(step):
        return {"G_mean_loss": tf.reduce_mean(step.out["G"])}

    monkeypatch.setitem(TERMS, "bright", Term("G_mean_loss", "mean of the generated images", brightness))
    flags = ["--dataset=drawn", "--loss_weights=bright=0.5", "--epoch=1", *TINY_FLAGS]
    assert main.main(flags) == 0
    assert "bright " in capsys.readouterr().out
    assert "G_mean_loss" in read_rows(workplace / "save")[0]
    assert read_config("save")["training"]["loss_weights"] == {**PRESETS["default"], "bright": 0.5}
    # included models and earlier runs can still be loaded
    for name in INCLUDED_MODELS:
        assert FaceAging.load(pretrained=name)
    assert complete_weights([*PAPER, 5e-3, 0.1])["label"] == 5e-3
    resumed = FaceAging(**TINY, save_dir=run.save_dir)
    assert resumed.load_checkpoint() and "C_z" in resumed.networks


def test_status_line_has_every_term_and_objective(run):
    losses = {name: float(value) for name, value in read_rows(run.save_dir)[-1].items() if "loss" in name}
    shown = status_line(losses).split()[::2]
    assert shown == ["L1", "G_img", "E_z", "tv", "label", "feature", "D_z", "D_img", "C_z"]
