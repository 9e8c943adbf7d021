"""How well faces are kept, and how far the age label moves them; open it to measure something else."""

import itertools
from collections.abc import Sequence

import keras
import numpy as np

from support import aging_measures
from support.aging_measures import joined
from support.batches import labels_of
from support.dataset import Face
from support.labels import FEMALE, GENDER_NAMES, AgeBins, gender_labels

MEASURES = {  # what is measured of a set of faces, and the units
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
SSIM_WINDOW = 11  # the width in pixels of the Gaussian window, whose standard deviation is 1.5
GREY = (0.299, 0.587, 0.114)  # the weights of red, green and blue in a grey image: ITU-R 601


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the structural similarity, float [N], of images [N, H, W, C] in [0, 1]; it is 1 where they are equal.

    The mean over channels and over all places of the window within the images (Wang, Bovik, Sheikh and Simoncelli
    2004). For images smaller than the window, the window is as small as they are.
    """
    window = min(SSIM_WINDOW, *first.shape[1:3])
    # in float32 the variance of a nearly even window would be off in the fifth digit, and so would what is printed
    first, second = first.astype(np.float64), second.astype(np.float64)
    return keras.ops.convert_to_numpy(keras.ops.image.ssim(first, second, filter_size=window))


def sharpness(image: np.ndarray) -> float:
    """Returns the variance of the Laplacian of an image, float [H, W, C], made grey, in squared units of its own."""
    from scipy.ndimage import laplace  # importing SciPy is slow

    return float(laplace(image @ GREY if image.shape[-1] == 3 else image[..., 0]).var())


class Evaluator:
    """Gathers what is measured of faces, some at a time, so that memory does not grow with their images.

    With identity whether the first 100 stay the same person is measured too, by dlib, about a second a face; where dlib
    is missing that is said.
    """

    def __init__(self, bins: AgeBins, identity: bool):
        self.bins = bins
        self.identity = identity and aging_measures.people_are_told_apart()
        self.parts: list[dict[str, np.ndarray]] = []
        self.people: list[dict[str, np.ndarray]] = []
        self.others: dict[int, np.ndarray] = {}

    def add(self, images: np.ndarray, faces: Sequence[Face], z: np.ndarray, *made: np.ndarray) -> None:
        """Measure some faces.

        images: uint8 [N, S, S, C]; faces: theirs; z: [N, Z]; made, float in [-1, 1]: their reconstructions, [N, S, S,
        C], and the faces at every bin as their own gender and as the other one, [bins, N, S, S, C] each.
        """
        labels = {"years": np.array([face.age for face in faces])}
        labels["ages"], labels["genders"] = labels_of(faces, self.bins)
        normal = images.astype(np.float32) / 127.5 - 1
        rebuilt, aged, other = (np.rint((np.clip(one, -1, 1) + 1) * 127.5).astype(np.uint8) for one in made)
        left = aging_measures.FACES_COMPARED - sum(len(part["years"]) for part in self.parts)
        if self.identity and left > 0:
            self.people.append(aging_measures.compare_people(images[:left], rebuilt[:left], aged[:, :left]))
        seen = aging_measures.look(images, aged, other, labels["genders"])
        self.parts.append({**labels, "z": z, **measure_faces(normal, *made[:2]), **seen})

    def choose_others(self, faces: Sequence[Face]) -> list[Face]:
        """Returns some faces of each gender and age bin, whose photos `compare` is to be given."""
        return aging_measures.choose_others(faces, self.bins)

    def compare(self, images: np.ndarray, faces: Sequence[Face]) -> None:
        """Hold identity against how alike other people are: images, uint8 [M, S, S, C], of faces."""
        self.others = aging_measures.distances_of_others(images, faces, self.bins)

    def measured(self) -> dict:
        """Returns what `summarize` returns and, where it was measured, "identity": see support.aging_measures."""
        each = joined(self.parts)
        measured = summarize(each, self.bins)
        if self.people:
            people = joined(self.people)
            index = each["ages"].argmax(axis=1)[: len(people["rebuilt"])]
            measured["identity"] = aging_measures.identity(people, index, self.others, self.bins)
        return measured


def measure_faces(faces: np.ndarray, reconstructions: np.ndarray, aged: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the measures of each face, arrays [N, ...] by name.

    faces, reconstructions: float [N, S, S, C] in [-1, 1]; aged: the same faces at every age bin, [bins, N, S, S, C].
    """
    pixels = (1, 2, 3)  # the axes of one image
    error = np.square(faces - reconstructions).mean(axis=pixels)
    pairs = zip(faces, reconstructions, strict=True)
    changes = [np.abs(older - younger).mean(axis=pixels) for younger, older in itertools.pairwise(aged)]
    return {
        "L1": np.abs(faces - reconstructions).mean(axis=pixels),
        "PSNR": 10 * np.log10(2**2 / np.maximum(error, 1e-10)),
        "SSIM": ssim(faces / 2 + 0.5, reconstructions / 2 + 0.5),
        "sharpness": np.array([[sharpness(face), sharpness(reconstruction)] for face, reconstruction in pairs]),
        "label_movement": np.stack(changes, axis=1),  # [N, bins - 1]
    }


def summarize(each: dict[str, np.ndarray], bins: AgeBins) -> dict:
    """Returns {"overall": measures, "by_age": {bin: measures}, "by_gender": {gender: measures}, "units", "aging"}.

    each: of N faces, the arrays of `measure_faces` and of `aging_measures.look`, and "z" [N, Z], the ages in
    "years", the age labels "ages" and the gender labels "genders". Measures are those of MEASURES and, by pair of bins,
    "label_movement_by_bin"; "aging" is what `aging_measures.aging` returns. A group without a face is left out.
    """
    index = each["ages"].argmax(axis=1)
    by_age = {name: index == i for i, name in enumerate(bins.names)}
    by_gender = {
        name: each["genders"][:, FEMALE] == gender_labels([gender])[0, FEMALE] for gender, name in GENDER_NAMES.items()
    }

    def measures_by(groups: dict[str, np.ndarray]) -> dict:
        return {name: _mean_measures(each, chosen, bins) for name, chosen in groups.items() if chosen.any()}

    return {
        "overall": _mean_measures(each, slice(None), bins),
        "by_age": measures_by(by_age),
        "by_gender": measures_by(by_gender),
        "units": MEASURES,
        "aging": aging_measures.aging(each, each["years"], bins),
    }


def _mean_measures(each: dict[str, np.ndarray], chosen, bins: AgeBins) -> dict:
    from scipy.stats import kstest, uniform  # importing SciPy is slow

    each = {name: each[name][chosen] for name in ("z", "L1", "PSNR", "SSIM", "sharpness", "label_movement")}
    prior = uniform(-1, 2).cdf
    face, reconstruction = each["sharpness"].mean(axis=0)
    movement = each["label_movement"].mean(axis=0)
    measures = {
        "L1": each["L1"].mean(),
        "PSNR": each["PSNR"].mean(),
        "SSIM": each["SSIM"].mean(),
        "z_KS": kstest(each["z"], prior, method="asymp").statistic.mean(),
        "z_KS_pooled": kstest(each["z"].ravel(), prior, method="asymp").statistic,
        "sharpness": reconstruction / max(face, 1e-10),
        "label_movement": movement.mean(),
    }
    pairs = [f"{young} to {old}" for young, old in itertools.pairwise(bins.names)]
    return {
        "faces": len(each["L1"]),
        **{name: round(float(value), 5) for name, value in measures.items()},
        "label_movement_by_bin": {pair: round(float(value), 5) for pair, value in zip(pairs, movement, strict=True)},
    }


def table(measured: dict) -> str:
    """Returns what `summarize` returned as a plain table, a row a group, and the units below it."""
    names = list(measured["units"])
    lines = ["".join(f"{name:>15}" for name in ("", *names))]
    for group, row in {"all": measured["overall"], **measured["by_age"], **measured["by_gender"]}.items():
        lines.append("".join(f"{value:>15}" for value in (group, *(row[name] for name in names))))
    return "\n".join([*lines, *(f"{name}: {unit}" for name, unit in measured["units"].items())])
