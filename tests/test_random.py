"""People who do not exist: how their z is drawn, and how they are drawn at every age."""

import imageio.v3 as iio
import numpy as np
import pytest

import main
from FaceAging import FaceAging
from support import pretrained
from support.errors import InputError
from tests.conftest import TINY, TINY_FLAGS
from tools import package_model


@pytest.fixture(scope="module")
def z():
    """Latent codes of two numbers that go together, and one that hardly moves."""
    normal = np.random.default_rng(0).standard_normal((4000, 3)) @ [[0.5, 0.3, 0], [0, 0.4, 0], [0, 0, 0.01]]
    return np.tanh(normal + [0.2, -0.1, 1.0]).astype(np.float32)


def test_what_is_drawn_is_distributed_as_what_was_fitted(z):
    drawn = pretrained.sample_distribution(pretrained.fit_distribution(z), 4000, seed=1)
    assert drawn.dtype == np.float32 and np.abs(drawn).max() < 1
    np.testing.assert_allclose(drawn.mean(axis=0), z.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), np.cov(z, rowvar=False), atol=0.02)


def test_a_seed_draws_the_same_people_whatever_their_number(z):
    fitted = pretrained.fit_distribution(z)
    assert np.array_equal(
        pretrained.sample_distribution(fitted, 3, seed=1), pretrained.sample_distribution(fitted, 10, seed=1)[:3]
    )
    assert not np.array_equal(
        pretrained.sample_distribution(fitted, 3, seed=1), pretrained.sample_distribution(fitted, 3, seed=2)
    )


def test_a_code_at_the_edge_is_fitted_too():
    assert np.isfinite(
        pretrained.fit_distribution(np.array([[1.0, -1.0], [0.0, 0.5], [-1.0, 1.0]], np.float32)).covariance
    ).all()


def test_a_packed_model_carries_the_distribution_of_z(tmp_path, faces):
    FaceAging(**TINY, save_dir=tmp_path / "run").train(faces, num_epochs=1)
    package_model.pack(tmp_path / "run", 8, tmp_path / "packed", faces)
    packed = FaceAging.load(tmp_path / "packed")
    run = FaceAging.load(tmp_path / "run")
    assert run.z_distribution is None
    run.fit_z(faces)
    np.testing.assert_allclose(packed.z_distribution.mean, run.z_distribution.mean, atol=1e-6)
    np.testing.assert_allclose(packed.sample(4), run.sample(4), atol=1e-4)


def test_without_a_distribution_z_is_drawn_from_the_prior():
    z = FaceAging(**TINY).sample(500)
    assert z.shape == (500, 50) and z.std() == pytest.approx(1 / np.sqrt(3), rel=0.02)


def test_main_draws_people_at_every_age_ten_a_sheet(workplace, monkeypatch, capsys):
    assert main.main(["--dataset=drawn", *TINY_FLAGS, "--epoch=1"]) == 0
    assert main.main(["--is_train=False", "--random=12", "--gender=female"]) == 0
    sheets = {path.name: iio.imread(path) for path in (workplace / "save/test").glob("random*")}
    assert set(sheets) == {"random_as_female.png", "random_as_female_2.png"}
    assert all(sheet.shape[0] >= 10 * 32 for sheet in sheets.values())  # a row an age

    (workplace / "data/drawn").unlink()
    drawn = []
    sample = FaceAging.sample
    monkeypatch.setattr(FaceAging, "sample", lambda *said: drawn.append(said[1:]) or sample(*said))
    assert main.main(["--is_train=False", "--random=1", "--seed=3"]) == 0
    assert drawn == [(1, 3)]  # the seed of the run is another
    assert "drawn from U(-1, 1)" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["0", "-3", "100000", "ten"])
def test_a_number_of_people_that_cannot_be_drawn_is_refused(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main.main(["--is_train=False", f"--random={number}"])
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--testdir=x", "--age=8", "--animate=gif", "--align=True"])
def test_random_people_and_faces_of_ones_own_are_not_taken_together(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--is_train=False", "--random=3", flag]) == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_people_are_drawn_from_the_prior_where_the_set_is_too_small_to_fit(faces):
    with pytest.raises(InputError, match="two at least"):
        pretrained.fit_distribution(np.zeros([1, 5], np.float32))
