"""Aging: sheets of any number of faces, exact ages, blends, random faces, and invalid input."""

import re
import shutil
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image, ImageFont

import main
from FaceAging import FaceAging
from ops import denormalize, load_image
from support import InputError, alignment
from support.labels import FEMALE, MALE, AgeBins, gender_labels
from support.pretrained import Distribution
from support.rendering import FILM_SIDE, MAX_FACE_ROWS, read_input_faces
from tests.conftest import TINY
from tests.test_alignment import photo
from tools import package_model

SHEET_LABELS = ["input", "as labelled", *AgeBins().names]


@pytest.fixture(scope="module")
def model(untrained_run):
    return FaceAging.load(untrained_run)


@pytest.fixture
def fresh(model, tmp_path):
    """The model, writing into an empty folder."""
    model.save_dir = tmp_path
    return model


def tiles(sheet, faces, labels=SHEET_LABELS, side=32, further=False):
    """Return the images of a sheet, [rows, faces, side, side, 3]; positions follow from its labels and size."""
    gap, margin, type_size = 2, 4, 12
    font = ImageFont.load_default(type_size)
    if faces <= MAX_FACE_ROWS and not further:  # a row for each face, the labels below
        top = sheet.shape[0] - margin - sum(font.getmetrics()) - gap - faces * (side + gap) + gap
        rows = [sheet[top + face * (side + gap) :][:side] for face in range(faces)]
        return np.array(
            [[row[:, margin + column * (side + gap) :][:, :side] for row in rows] for column in range(len(labels))]
        )
    left = margin + round(max(font.getlength(label) for label in labels)) + type_size // 2
    top = sheet.shape[0] - margin - len(labels) * (side + gap) + gap
    rows = [sheet[top + row * (side + gap) :][:side] for row in range(len(labels))]
    return np.array([[row[:, left + face * (side + gap) :][:, :side] for face in range(faces)] for row in rows])


@pytest.mark.parametrize(("count", "sheets"), [(1, [1]), (3, [3]), (10, [10]), (23, [10, 10, 3])])
def test_any_number_of_faces_is_rendered_ten_per_sheet(fresh, faces, tmp_path, count, sheets):
    paths = [face.path for face in faces[:count]]
    assert fresh.test(paths) == count
    suffixes = [""] + [f"_{number}" for number in range(2, len(sheets) + 1)]
    expected = {f"test_as_{name}{suffix}.png" for name in ("male", "female") for suffix in suffixes}
    assert {path.name for path in (tmp_path / "test").iterdir()} == expected
    images = np.stack([load_image(path, 32, 3) for path in paths])
    for name, gender in (("male", MALE), ("female", FEMALE)):
        for number, (suffix, width) in enumerate(zip(suffixes, sheets, strict=True)):
            shown = tiles(iio.imread(tmp_path / f"test/test_as_{name}{suffix}.png"), width, further=number > 0)
            row = images[10 * number : 10 * number + width]
            assert np.array_equal(shown[0], row)  # the input in the first row
            labelled = faces[10 * number : 10 * number + width]  # then the reconstructions at their own age and gender
            ages, genders = fresh.bins.one_hot([f.age for f in labelled]), gender_labels([f.gender for f in labelled])
            reconstructed = denormalize(fresh.G([fresh.encode(row), ages, genders], training=False)).numpy()
            assert np.abs(shown[1].astype(int) - reconstructed).max() <= 1
            for age, generated in zip(fresh.bins.centres, shown[2:], strict=True):  # then young to old
                assert np.abs(generated.astype(int) - fresh.age(row, [age], [gender])).max() <= 1


def test_age_between_two_centres_is_interpolated(model, faces):
    z = model.encode(np.stack([load_image(faces[0].path, 32, 3)]))
    young, between, old = (model.generate(z, [age], [MALE]).astype(int) for age in (2.5, 5.25, 8))
    assert not np.array_equal(young, old)
    assert np.array_equal(model.generate(z, [0], [MALE]), young)  # clamped outside the centres
    assert np.abs(between - (young + old) / 2).mean() < np.abs(young - old).mean()


def test_age_broadcasts_one_image_to_many_ages(model, faces):
    image = np.asarray(Image.open(faces[0].path))[np.newaxis]  # [1, 128, 128, 3]
    aged = model.generate(np.repeat(model.encode(image), 3, axis=0), [5, 40, 80], FEMALE)
    assert aged.shape == (3, 32, 32, 3) and aged.dtype == np.uint8
    assert np.abs(model.age(image, [5, 40, 80], [FEMALE]).astype(int) - aged).max() <= 1  # one z for all ages


def test_genders_are_words_or_numbers_and_others_are_rejected(fresh, faces, tmp_path):
    images = np.stack([load_image(face.path, 32, 3) for face in faces[:2]])
    assert np.array_equal(fresh.age(images, 30, "female"), fresh.age(images, 30, FEMALE))
    assert np.array_equal(fresh.age(images, 30, ["male", "female"]), fresh.age(images, 30, [MALE, FEMALE]))
    for refused in (lambda: fresh.age(images, 30, "girl"), lambda: fresh.test([faces[0].path], genders=[2])):
        with pytest.raises(InputError, match="is not a gender"):
            refused()
    assert not (tmp_path / "test").exists()
    fresh.test([faces[0].path], genders="female")
    fresh.draw_random(1, "female")
    assert sorted(path.name for path in (tmp_path / "test").iterdir()) == [
        "random_as_female.png",
        "test_as_female.png",
    ]
    assert fresh.blend(faces[0].path, faces[1].path, (8, 65), "female").is_file()


def test_results_do_not_depend_on_the_number_of_faces(model, faces):
    images = np.stack([load_image(face.path, 32, 3) for face in faces])
    together = model.age(np.concatenate([images, images]), 30, MALE)  # 120: more than a batch
    alone = model.age(images[:1], 30, MALE)
    assert np.abs(together[0].astype(int) - alone[0]).max() <= 1
    assert np.abs(together[60].astype(int) - alone[0]).max() <= 1


def test_unlabelled_faces_have_no_reconstruction_row(fresh, faces, tmp_path):
    copy = tmp_path / "unlabelled.jpg"
    copy.write_bytes(Path(faces[0].path).read_bytes())
    fresh.test([copy])
    with_label, without = read_input_faces([faces[0].path, copy], 32, 3, align=False)
    assert with_label.label == (faces[0].age, faces[0].gender) and without.label == ()
    widths = [iio.imread(tmp_path / "test/test_as_male.png").shape[1]]
    fresh.test([faces[0].path])
    widths.append(iio.imread(tmp_path / "test/test_as_male.png").shape[1])
    assert widths[1] - widths[0] == 34  # a column of 32 pixels and the gap


def test_exact_ages_write_one_image_per_face_age_and_gender(fresh, faces, tmp_path):
    paths = [face.path for face in faces[:2]]
    assert fresh.test(paths, genders=[FEMALE], ages=[8.5, 65]) == 2
    stems = [Path(path).stem for path in paths]
    assert {path.name for path in (tmp_path / "test").iterdir()} == {
        f"{stem}_{age}_female.png" for stem in stems for age in ("8.5", "65")
    }
    image = np.stack([load_image(paths[1], 32, 3)])
    shown = iio.imread(tmp_path / f"test/{stems[1]}_65_female.png")
    assert np.abs(shown.astype(int) - fresh.age(image, 65, FEMALE)[0]).max() <= 1


def test_faces_with_equal_names_do_not_overwrite_each_other(fresh, faces, tmp_path):
    names = ["a/me.jpg", "a/me.png", "a/me_2.jpg", "b/Me.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(faces[0].path).save(tmp_path / name)
    fresh.test([tmp_path / name for name in names], genders=[MALE], ages=[30])
    written = {path.name for path in (tmp_path / "test").iterdir()}
    assert written == {"me_30_male.png", "me_2_30_male.png", "me_2_2_30_male.png", "Me_3_30_male.png"}


def test_images_of_every_mode_and_name_are_aged(fresh, faces, tmp_path):
    (folder := tmp_path / "in").mkdir()
    face = Image.open(faces[0].path).convert("RGB")
    turned = Image.Exif()
    turned[0x112] = 6  # as phones store upright photos
    face.convert("L").save(folder / "grey.png")
    face.convert("RGBA").save(folder / "Zoë Müller.png")
    face.convert("CMYK").save(folder / "two words.jpg")
    Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen bits.png")
    face.save(folder / "日本.png")
    face.rotate(90, expand=True).save(folder / "turned.png", exif=turned)
    paths = sorted(folder.iterdir())
    assert fresh.test(paths, genders=[MALE], ages=[30]) == 6
    assert {path.name for path in (tmp_path / "test").iterdir()} == {f"{path.stem}_30_male.png" for path in paths}
    upright, plain = (iio.imread(tmp_path / f"test/{name}_30_male.png") for name in ("turned", "日本"))
    assert np.array_equal(upright, plain)


def test_images_are_read_lazily(fresh, faces, capsys):
    inputs = read_input_faces([faces[0].path, "missing.jpg"], 32, 3, align=False)
    next(inputs)
    assert "missing.jpg" not in capsys.readouterr().out
    assert list(inputs) == [] and "missing.jpg: no such file" in capsys.readouterr().out


def test_film_runs_from_young_to_old_and_back(fresh, faces, tmp_path):
    fresh.test([faces[0].path], genders=[FEMALE], animate="gif")
    film = tmp_path / f"test/{Path(faces[0].path).stem}_female.gif"
    frames = iio.imread(film, index=None)
    assert len(frames) >= 40 and film.stat().st_size <= 2_000_000
    there, back = frames[1 : len(frames) // 2], frames[: len(frames) // 2 : -1]
    assert np.abs(there.astype(int) - back).mean() < 2  # the palette's error
    ages = frames[:, : -FILM_SIDE - 6]  # above the face and its margin
    assert ages.shape[1] > 12 and (ages < 128).any(axis=(1, 2, 3)).all()
    assert not np.array_equal(ages[0], ages[len(frames) // 2])
    assert frames.shape[2] == FILM_SIDE + 12  # small faces are enlarged so that the age label fits


def test_blend_interpolates_between_two_faces_at_both_ages(fresh, faces, tmp_path):
    first, second = faces[0], faces[-1]
    path = fresh.blend(first.path, second.path)
    assert path.parent == tmp_path / "test"
    shown = tiles(iio.imread(path), 10, ["input", f"at {first.age}", f"at {second.age}"])
    images = np.stack([load_image(face.path, 32, 3) for face in (first, second)])
    assert np.array_equal(shown[0, [0, -1]], images)
    for row, face in zip(shown[1:], (first, second), strict=True):
        ends = fresh.age(images, face.age, [first.gender, second.gender])
        assert np.abs(row[[0, -1]].astype(int) - ends).max() <= 1


def test_blend_of_unlabelled_faces_requires_ages(fresh, faces, tmp_path):
    copy = tmp_path / "me.jpg"
    copy.write_bytes(Path(faces[0].path).read_bytes())
    with pytest.raises(InputError, match="--age A,B"):
        fresh.blend(copy, faces[0].path)
    assert fresh.blend(copy, faces[0].path, ages=[20, 30], genders=[MALE, MALE]).exists()


def test_main_blends_two_faces_and_prints_the_path(untrained_run, faces, capsys):
    first, second = (face.path for face in faces[:2])
    assert main.main(["--is_train", "False", "--savedir", str(untrained_run), "--blend", first, second]) == 0
    drawn = untrained_run / "test" / f"blend_{Path(first).stem}_{Path(second).stem}.png"
    assert capsys.readouterr().out.splitlines()[-1] == f"Done! Results are saved as {drawn}" and drawn.is_file()


def test_blend_aligns_photos_and_rejects_several_faces(fresh, tmp_path):
    for name, count in (("one.png", 1), ("two.png", 2)):
        Image.fromarray(photo([(430, 200, 200, 10), (130, 150, 110, -10)][:count])).save(tmp_path / name)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    with pytest.raises(InputError, match="one face in each photo, but .*two.png shows 2"):
        fresh.blend(one, two, [20, 30], [MALE, MALE], align=True)
    path = fresh.blend(one, one, [20, 30], [MALE, MALE], align=True)
    assert not np.array_equal(iio.imread(path), iio.imread(fresh.blend(one, one, [20, 30], [MALE, MALE])))


def test_main_reports_a_photo_without_a_face_and_continues(untrained_run, tmp_path, capfd):
    Image.fromarray(photo([(430, 200, 200, 10), (130, 150, 110, -10)])).save(tmp_path / "two.png")
    Image.fromarray(photo([])).save(tmp_path / "empty.png")
    flags = ["--is_train", "False", "--savedir", str(untrained_run), "--align", "True", "--testdir"]
    assert main.main([*flags, str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "empty.png: no face found" in printed and "2 faces aged" in printed
    assert main.main([*flags, str(tmp_path / "empty.png")]) == 2
    assert capfd.readouterr().err.endswith(
        f"no face to age in {tmp_path / 'empty.png'}: give --testdir photos of faces\n"
    )


def test_missing_mtcnn_is_an_input_error_with_the_install_command(fresh, faces, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn.stages", None)
    alignment._networks.cache_clear()
    with pytest.raises(InputError, match="mtcnn: .* -m pip install mtcnn"):
        fresh.test([faces[0].path], genders=[MALE], align=True)
    assert fresh.test([faces[0].path], genders=[MALE]) == 1


def test_unaligned_image_causes_a_warning(fresh, faces, tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, [200, 200, 3], np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    fresh.test([tmp_path / "noise.png"], genders=[MALE], ages=[30])
    assert "noise.png" in (error := capfd.readouterr().err) and "--align True" in error


def test_unreadable_image_is_reported_and_skipped(fresh, faces, tmp_path, capfd):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"not an image")
    assert fresh.test([faces[0].path, bad]) == 1
    assert "broken.jpg" in capfd.readouterr().out


def test_too_long_file_names_are_shortened(fresh, faces, tmp_path):
    long = [tmp_path / f"{'字' * 82}{i}.png" for i in range(2)]
    for path in long:
        path.write_bytes(Path(faces[0].path).read_bytes())
    assert fresh.test(long, ages=[8, 65], animate="gif") == 2
    name = "字" * 66
    for end in ("_8_male.png", "_65_female.png", "_male.gif", "_2_8_male.png", "_2_female.gif"):
        assert (tmp_path / "test" / (name + end)).is_file()
    assert fresh.blend(*long, ages=(8, 65), genders=(0, 1)).is_file()


def test_nothing_is_written_if_all_images_are_unreadable(fresh, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(b"")
    with pytest.raises(InputError, match="no face to age in .*broken.jpg"):
        fresh.test([bad])
    assert list(tmp_path.iterdir()) == [bad]


def test_load_rejects_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match="no trained model"):
        FaceAging.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_main_ages_a_folder_and_prints_the_result(untrained_run, drawn_folder, capsys):
    assert main.main(["--is_train", "False", "--savedir", str(untrained_run), "--testdir", str(drawn_folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "Building graph ...",
        "Testing Mode",
        "Loading pre-trained model ...",
        "SUCCESS ^_^",
        "60 faces aged",
        f"Done! Results are saved as {untrained_run / 'test' / 'test_as_xxx.png'}",
    ]


def test_main_ages_a_single_image_or_a_pattern(untrained_run, faces, drawn_folder, capsys):
    for testdir, count in ((faces[0].path, 1), (str(drawn_folder / "1?_0_*.jpg"), None)):
        assert main.main(["--is_train", "False", "--savedir", str(untrained_run), "--testdir", testdir]) == 0
        matched = count or len(list(drawn_folder.glob("1?_0_*.jpg")))
        assert re.search(rf"^{matched} faces? aged$", capsys.readouterr().out, re.MULTILINE)


def test_main_rejects_a_folder_of_unreadable_images(untrained_run, tmp_path, capfd):
    for name in ("one.jpg", "two.png"):
        (tmp_path / name).write_bytes(b"not an image")
    before = sorted(untrained_run.rglob("*"))
    assert main.main(["--is_train", "False", "--savedir", str(untrained_run), "--testdir", str(tmp_path)]) == 2
    printed = capfd.readouterr()
    assert printed.err.count("\n") == 1 and "no face to age in any of 2 images" in printed.err
    assert "one.jpg" in printed.out and "two.png" in printed.out
    assert sorted(untrained_run.rglob("*")) == before


@pytest.mark.parametrize("content", ["a file", "nothing"])
def test_main_rejects_a_testdir_without_images(untrained_run, tmp_path, capsys, content):
    if content == "a file":
        (tmp_path / "notes.txt").write_text("not an image")
    assert main.main(["--is_train", "False", "--savedir", str(untrained_run), "--testdir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no images in" in error


def test_python_example_of_the_readme_runs(untrained_run, faces, tmp_path, monkeypatch):
    monkeypatch.setattr("FaceAging.included_model", lambda name: untrained_run)
    monkeypatch.chdir(tmp_path)
    Path("face.jpg").write_bytes(Path(faces[0].path).read_bytes())
    project = Path(main.__file__).parent
    Path("photo.jpg").write_bytes((project / "demo/faces/20_1M25.png").read_bytes())
    readme = (project / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["z"].shape == (1, 50)
    assert names["older"].shape == (1, 32, 32, 3) and names["series"].shape == (3, 32, 32, 3)
    assert [image.shape for image in names["photos"]] == [(128, 128, 3)] * 2


def test_later_calls_do_not_retrace(untrained_run, faces):
    model = FaceAging.load(untrained_run)
    images = np.stack([load_image(face.path, 32, 3) for face in faces[:5]])

    def traced():
        steps = (FaceAging._z_of.__wrapped__, FaceAging._images_of.__wrapped__)
        return [step.__get__(model, FaceAging).experimental_get_tracing_count() for step in steps]

    model.age(images[:1], 30, MALE)
    once = traced()
    model.age(images[1:2], 65, FEMALE)
    assert traced() == once == [1, 1]
    model.age(images[:2], 65, FEMALE)  # traced again for any number of faces
    twice = traced()
    for count in (1, 3, 5):
        model.age(images[:count], 30, MALE)
    assert traced() == twice


@pytest.mark.parametrize("images", [np.zeros([32, 32, 3], np.uint8), np.zeros([1, 32, 32, 3], np.float32)])
def test_encode_rejects_arrays_of_other_shapes_or_types(model, images):
    with pytest.raises(InputError, match=r"uint8 \[N, H, W, C\] .*, not"):
        model.encode(images)


def test_numbered_sheets_of_an_earlier_call_are_removed(tmp_path, drawn_folder):
    model = FaceAging(**TINY, save_dir=tmp_path)
    paths = sorted(drawn_folder.iterdir())
    mine = ["test_as_male_2_mine.png", "test_as_male_old.png", "test_as_male_02.png"]
    model.test(paths[:25])
    model.draw_random(25)
    for name in mine:
        (tmp_path / "test" / name).touch()
    model.test(paths[:15], genders=[0])
    model.draw_random(10)
    assert {path.name for path in (tmp_path / "test").iterdir()} == {
        *("test_as_male.png", "test_as_male_2.png"),
        *("test_as_female.png", "test_as_female_2.png", "test_as_female_3.png"),  # not part of the later call
        *("random_as_male.png", "random_as_female.png"),
        *mine,
    }


# Random faces.


@pytest.fixture(scope="module")
def z():
    """Latent codes with two correlated dimensions and one of small variance."""
    normal = np.random.default_rng(0).standard_normal((4000, 3)) @ [[0.5, 0.3, 0], [0, 0.4, 0], [0, 0, 0.01]]
    return np.tanh(normal + [0.2, -0.1, 1.0]).astype(np.float32)


def test_samples_have_the_fitted_distribution(z):
    drawn = Distribution.fit(z).sample(4000, seed=1)
    assert drawn.dtype == np.float32 and np.abs(drawn).max() < 1
    np.testing.assert_allclose(drawn.mean(axis=0), z.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), np.cov(z, rowvar=False), atol=0.02)


def test_samples_depend_on_the_seed_but_not_on_the_count(z):
    fitted = Distribution.fit(z)
    assert np.array_equal(fitted.sample(3, seed=1), fitted.sample(10, seed=1)[:3])
    assert not np.array_equal(fitted.sample(3, seed=1), fitted.sample(3, seed=2))


def test_fit_accepts_codes_at_the_limits():
    assert np.isfinite(Distribution.fit(np.array([[1.0, -1.0], [0.0, 0.5], [-1.0, 1.0]], np.float32)).covariance).all()


def test_a_packed_model_has_the_distribution_of_z(run, tmp_path, faces):
    package_model.pack(run.save_dir, 8, tmp_path, faces)
    packed, model = FaceAging.load(tmp_path), FaceAging.load(run.save_dir)
    assert model.z_distribution is None
    model.fit_z(faces)
    np.testing.assert_allclose(packed.z_distribution.mean, model.z_distribution.mean, atol=1e-6)
    np.testing.assert_allclose(packed.sample(4), model.sample(4), atol=1e-4)


def test_without_a_distribution_z_is_sampled_from_the_prior():
    z = FaceAging(**TINY).sample(500)
    assert z.shape == (500, 50) and z.std() == pytest.approx(1 / np.sqrt(3), rel=0.02)


def test_main_renders_random_faces_ten_per_sheet(run, workplace, monkeypatch, capsys):
    shutil.copytree(run.save_dir, "save")
    assert main.main(["--is_train=False", "--random=12", "--gender=female"]) == 0
    sheets = {path.name: iio.imread(path) for path in (workplace / "save/test").glob("random*")}
    assert set(sheets) == {"random_as_female.png", "random_as_female_2.png"}
    assert all(sheet.shape[0] >= 10 * 32 for sheet in sheets.values())  # a row an age

    (workplace / "data/drawn").unlink()
    drawn = []
    sample = FaceAging.sample
    monkeypatch.setattr(FaceAging, "sample", lambda *arguments: drawn.append(arguments[1:]) or sample(*arguments))
    assert main.main(["--is_train=False", "--random=1", "--seed=3"]) == 0
    assert drawn == [(1, 3)]  # not the seed of the run
    assert "from U(-1, 1)" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["0", "-3", "100000", "ten"])
def test_invalid_number_of_random_faces_is_rejected(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main.main(["--is_train=False", f"--random={number}"])
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--testdir=x", "--age=8", "--animate=gif", "--align=True"])
def test_random_rejects_flags_of_photos(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--is_train=False", "--random=3", flag]) == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


def test_fit_rejects_a_single_code():
    with pytest.raises(InputError, match="use two or more"):
        Distribution.fit(np.zeros([1, 5], np.float32))
