"""Metrics of a trained model: reconstruction error, age and gender of generated faces, and identity."""

import itertools
from collections.abc import Sequence

import keras
import numpy as np

from support import recognition
from support.dataset import Face
from support.fast_ops import denormalize, normalize
from support.labels import FEMALE, GENDER_NAMES, AgeBins, gender_labels, parse_person
from support.losses import LUMA

SAME_PERSON = 0.6  # dlib's threshold for the distance of two embeddings of one person
FAR = 0.01  # false accept rate of the stricter threshold
IDENTITY_FACES = 100  # faces whose identity is compared: dlib takes 0.1 s for each of twelve images of a face
PASTED_FACES = 20  # faces that are aged in place, at the youngest, a middle and the oldest bin
IMPOSTORS = 20  # photos of each gender and age bin that are compared with one another: 190 pairs
METRICS = {
    # reconstruction; by age bin and by gender
    "faces": "number of faces",
    "L1": "mean absolute difference of a face and its reconstruction, pixels in [-1, 1]",
    "PSNR": "peak signal-to-noise ratio of the reconstructions in dB, mean over faces",
    "SSIM": "structural similarity of a face and its reconstruction, 1 if equal, mean over faces",
    "z_KS": "Kolmogorov-Smirnov distance of a dimension of z from U(-1, 1), mean over dimensions; "
    "about 0.87 / sqrt(n) for n uniform numbers",
    "z_KS_pooled": "Kolmogorov-Smirnov distance of all dimensions of z, pooled, from U(-1, 1)",
    "sharpness": "variance of the Laplacian of the reconstructions, relative to that of the faces",
    "label_movement": "mean absolute change of the image from an age bin to the next, pixels in [-1, 1]",
    # aging; by requested age bin
    "youngest": "mean estimated age of the faces generated at the youngest bin, in years",
    "oldest": "mean estimated age of the faces generated at the oldest bin, in years",
    "span": "difference of oldest and youngest, in years",
    "rank_correlation": "Spearman correlation of requested and estimated age over the bins, mean over faces",
    "centre": "requested age, the centre of the bin, in years",
    "estimated_age": "mean estimated age of the generated faces, in years",
    "age_mae": "mean absolute difference of estimated age and bin centre, in years",
    "gender_accuracy": "share classified as requested, of faces generated at every bin as male and as female",
    "aged_sharpness": "variance of the Laplacian of the generated faces, relative to that of the real faces",
    "real_faces": "number of real faces in the bin",
    "real_age": "mean age of the real faces, in years",
    "real_estimated_age": "mean estimated age of the real faces, in years",
    "real_age_mae": "mean absolute error of the estimated age of the real faces, in years: the estimator's own error",
    "real_gender_accuracy": "share of real faces whose gender is classified correctly",
    # identity; by the age bin of the photo
    "reconstruction_verification": f"share of reconstructions within {SAME_PERSON} of the photo, dlib's threshold",
    "aged_verification": f"share of faces generated at every bin within {SAME_PERSON} of the photo",
    "pairs": "number of pairs of photos of different people of one gender and age bin",
    "false_accept_rate": f"share of pairs of different people of one gender and age bin within {SAME_PERSON}",
    "far1_threshold": f"distance at which the false accept rate is {FAR:.0%}, mean over photos",
    "reconstruction_verification_far1": f"share of reconstructions within the distance of {FAR:.0%} false accepts",
    "aged_verification_far1": f"share of faces generated at every bin within the distance of {FAR:.0%} false accepts",
    "pasted_detection": "share of faces, aged in place in their photos, that are detected again",
    "pasted_verification": f"share of those faces that are detected within {SAME_PERSON} of the photo",
}
IMAGE_AXES = (1, 2, 3)  # the axes of one image in a batch
Arrays = dict[str, np.ndarray]  # by name, with the faces along the first axis


class Evaluator:
    """Accumulates the metrics of faces in parts, so that memory does not grow with the number of images.

    With `identity` dlib compares the first IDENTITY_FACES faces, one second a face; without dlib a line on stderr
    names what to install, and everything else is measured.
    """

    def __init__(self, bins: AgeBins, identity: bool):
        self.bins = bins
        self.identity = identity and recognition.dlib_is_installed()
        self.parts: list[Arrays] = []
        self.distances: list[Arrays] = []
        self.impostors: dict[int, np.ndarray] = {}

    def add(self, images: np.ndarray, faces: Sequence[Face], z: np.ndarray, *generated: np.ndarray) -> None:
        """Measure some faces.

        images: uint8 [N, S, S, C]; faces: their labels; z: [N, Z]; generated, float in [-1, 1]: the reconstructions,
        [N, S, S, C], and the faces at every bin as their own and as the other gender, [bins, N, S, S, C] each.
        """
        labels = {"years": np.array([face.age for face in faces]), "gender": np.array([face.gender for face in faces])}
        rebuilt, own, other = (denormalize(x).numpy() for x in generated)
        left = IDENTITY_FACES - sum(len(part["years"]) for part in self.parts)
        if self.identity and left > 0:
            self.distances.append(recognition.identity_distances(images[:left], rebuilt[:left], own[:, :left]))
        errors = reconstruction_errors(normalize(images).numpy(), *generated[:2])
        estimates = estimate_labels(images, own, other, gender_labels(labels["gender"])[:, FEMALE])
        self.parts.append({**labels, "z": z, **errors, **estimates})

    def choose_impostors(self, faces: Sequence[Face]) -> list[Face]:
        """Return faces of the first IMPOSTORS people of each gender and age bin; `add_impostors` needs their images."""
        groups: dict[tuple, dict] = {}
        for face in faces:
            group = groups.setdefault((int(self.bins.index(face.age)), face.gender), {})
            group.setdefault(parse_person(face.path) or face.path, face)
        return [face for group in groups.values() for face in list(group.values())[:IMPOSTORS]]

    def add_impostors(self, images: np.ndarray, faces: Sequence[Face]) -> None:
        """Measure how similar different people are: images, uint8 [M, S, S, C], of faces."""
        self.impostors = impostor_distances(images, faces, self.bins)

    def metrics(self) -> dict:
        """Return {"overall", "by_age", "by_gender", "aging": {"overall", "by_bin"}}: the metrics of METRICS.

        Also {"descriptions": METRICS} and, with dlib, {"identity": {"overall", "by_bin"}}. Groups without a face are
        left out.
        """
        per_face = joined(self.parts)
        index = self.bins.index(per_face["years"])
        masks = {name: index == i for i, name in enumerate(self.bins.names)}
        genders = {name: per_face["gender"] == gender for gender, name in GENDER_NAMES.items()}

        def by_group(masks: Arrays) -> dict:
            return {name: reconstruction(per_face, mask, self.bins) for name, mask in masks.items() if mask.any()}

        metrics = {
            "overall": reconstruction(per_face, slice(None), self.bins),
            "by_age": by_group(masks),
            "by_gender": by_group(genders),
            "descriptions": METRICS,
            "aging": aging(per_face, self.bins),
        }
        if self.distances:
            distances = joined(self.distances)
            index = index[: len(distances["reconstruction"])]
            metrics["identity"] = identity(distances, index, self.impostors, self.bins)
        return metrics


def joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def mean(values) -> float | None:
    """Return the mean of the finite values, rounded; None if there are none."""
    values = np.asarray(values, float)
    return round(float(np.nanmean(values)), 5) if np.isfinite(values).any() else None


# Reconstruction.


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the structural similarity, float [N], of images [N, H, W, C] in [0, 1]; 1 if they are equal.

    Mean over channels and all positions of a Gaussian window of 11 pixels, or as many as the images have, with
    standard deviation 1.5 (Wang, Bovik, Sheikh and Simoncelli 2004).
    """
    window = min(11, *first.shape[1:3])
    # in float32 the variance of a nearly uniform window is wrong in the fifth digit
    first, second = first.astype(np.float64), second.astype(np.float64)
    return keras.ops.convert_to_numpy(keras.ops.image.ssim(first, second, filter_size=window))


def sharpness(image: np.ndarray) -> float:
    """Return the variance of the Laplacian of an image, float [H, W, C], converted to grey."""
    from scipy.ndimage import laplace  # importing SciPy is slow

    return float(laplace(image @ LUMA if image.shape[-1] == 3 else image[..., 0]).var())


def reconstruction_errors(faces: np.ndarray, reconstructions: np.ndarray, aged: np.ndarray) -> Arrays:
    """Return the metrics of each face for `reconstruction`, arrays [N, ...] by name.

    faces, reconstructions: float [N, S, S, C] in [-1, 1]; aged: the faces at every age bin, [bins, N, S, S, C].
    """
    squared = np.square(faces - reconstructions).mean(axis=IMAGE_AXES)
    changes = [np.abs(older - younger).mean(axis=IMAGE_AXES) for younger, older in itertools.pairwise(aged)]
    return {
        "L1": np.abs(faces - reconstructions).mean(axis=IMAGE_AXES),
        "PSNR": 10 * np.log10(2**2 / np.maximum(squared, 1e-10)),
        "SSIM": ssim(faces / 2 + 0.5, reconstructions / 2 + 0.5),
        "sharpness": np.array([[*map(sharpness, pair)] for pair in zip(faces, reconstructions, strict=True)]),
        "aged_sharpness": np.array([[*map(sharpness, column)] for column in zip(*aged, strict=True)]),  # [N, bins]
        "label_movement": np.stack(changes, axis=1),  # [N, bins - 1]
    }


def reconstruction(per_face: Arrays, chosen, bins: AgeBins) -> dict:
    """Return the reconstruction metrics of the chosen faces, and "label_movement_by_bin" by pair of bins."""
    from scipy.stats import kstest, uniform  # importing SciPy is slow

    per_face = {name: per_face[name][chosen] for name in ("z", "L1", "PSNR", "SSIM", "sharpness", "label_movement")}
    prior = uniform(-1, 2).cdf
    face, rebuilt = per_face["sharpness"].mean(axis=0)
    movement = per_face["label_movement"].mean(axis=0)
    metrics = {name: per_face[name].mean() for name in ("L1", "PSNR", "SSIM")}
    metrics["z_KS"] = kstest(per_face["z"], prior, method="asymp").statistic.mean()
    metrics["z_KS_pooled"] = kstest(per_face["z"].ravel(), prior, method="asymp").statistic
    metrics["sharpness"] = rebuilt / max(face, 1e-10)
    metrics["label_movement"] = movement.mean()
    pairs = [f"{young} to {old}" for young, old in itertools.pairwise(bins.names)]
    return {
        "faces": len(per_face["L1"]),
        **{name: round(float(value), 5) for name, value in metrics.items()},
        "label_movement_by_bin": {pair: round(float(value), 5) for pair, value in zip(pairs, movement, strict=True)},
    }


# Aging, as estimated by the age and gender network.


def estimate_labels(images: np.ndarray, own: np.ndarray, other: np.ndarray, gender: np.ndarray) -> Arrays:
    """Return estimated ages and correctness of genders for `aging`, arrays [N, ...] by name; NaN for unknown genders.

    images: real faces, uint8 [N, S, S, C]; own, other: the faces generated at every age bin as their own and as the
    other gender, uint8 [bins, N, S, S, C]; gender: -1 male, 1 female, 0 unknown, [N].
    """

    def correct(female: np.ndarray, requested: np.ndarray) -> np.ndarray:
        return np.where(requested == 0, np.nan, (female > 0.5) == (requested > 0))

    age, female = recognition.ages_and_genders(images)
    as_own, as_other = ([recognition.ages_and_genders(faces) for faces in aged] for aged in (own, other))
    accuracy = [[correct(female, gender) for _, female in as_own], [correct(female, -gender) for _, female in as_other]]
    return {
        "real_estimated_age": age,  # [N]
        "real_gender_accuracy": correct(female, gender),  # [N]
        "estimated_age": np.stack([ages for ages, _ in as_own], axis=1),  # [N, bins]
        "gender_accuracy": np.transpose(accuracy, [2, 0, 1]),  # [N, own and other gender, bins]
    }


def rank_correlation(centres: list[float], estimated: np.ndarray) -> np.ndarray:
    """Return the Spearman correlation, [N], of bin centres and estimated ages, [N, bins]; 0 if those are all equal."""
    from scipy.stats import rankdata  # importing SciPy is slow

    ranks = rankdata(estimated, axis=1) - (len(centres) + 1) / 2
    requested = rankdata(centres) - (len(centres) + 1) / 2
    return ranks @ requested / np.maximum(np.linalg.norm(ranks, axis=1) * np.linalg.norm(requested), 1e-10)


def aging(per_face: Arrays, bins: AgeBins) -> dict:
    """Return {"overall": aging metrics, "by_bin": {requested bin: metrics}}; None where there is nothing to measure."""
    estimated, real, years = per_face["estimated_age"], per_face["real_estimated_age"], per_face["years"]
    distance, error = np.abs(estimated - bins.centres), np.abs(real - years)
    aged_sharpness = per_face["aged_sharpness"] / max(per_face["sharpness"][:, 0].mean(), 1e-10)

    def metrics(requested, own) -> dict:
        """Return the metrics at some requested bins, and of those real faces."""
        return {
            "estimated_age": mean(estimated[:, requested]),
            "age_mae": mean(distance[:, requested]),
            "gender_accuracy": mean(per_face["gender_accuracy"][..., requested]),
            "aged_sharpness": mean(aged_sharpness[:, requested]),
            "real_faces": len(years[own]),
            "real_age": mean(years[own]),
            "real_estimated_age": mean(real[own]),
            "real_age_mae": mean(error[own]),
            "real_gender_accuracy": mean(per_face["real_gender_accuracy"][own]),
        }

    youngest, oldest = estimated[:, 0].mean(), estimated[:, -1].mean()
    overall = {"youngest": mean(youngest), "oldest": mean(oldest), "span": mean(oldest - youngest)}
    overall["rank_correlation"] = mean(rank_correlation(bins.centres, estimated))
    index = bins.index(years)
    by_bin = {name: {"centre": bins.centres[i], **metrics(i, index == i)} for i, name in enumerate(bins.names)}
    return {"overall": overall | metrics(slice(None), slice(None)), "by_bin": by_bin}


# Identity, by dlib's face embedding.


def impostor_distances(images: np.ndarray, faces: Sequence[Face], bins: AgeBins) -> dict[int, np.ndarray]:
    """Return, by index of the age bin, the distances of all pairs of photos of one gender; no pairs, no entry.

    images: photos of the faces, uint8 [N, S, S, C], each of another person. Raises InputError if dlib is missing.
    """
    embeddings = recognition.embeddings(images)
    ages, genders = bins.index([face.age for face in faces]), np.array([face.gender for face in faces])
    first, second = np.triu_indices(len(faces), 1)
    pairs = (ages[first] == ages[second]) & (genders[first] == genders[second])
    first, second = first[pairs], second[pairs]
    distances = np.linalg.norm(embeddings[first] - embeddings[second], axis=1)
    return {int(i): distances[ages[first] == i] for i in np.unique(ages[first])}


def identity(per_face: Arrays, ages: np.ndarray, impostors: dict[int, np.ndarray], bins: AgeBins) -> dict:
    """Return {"overall": identity metrics, "by_bin": {bin of the photo: metrics}} of N photos.

    per_face: of `recognition.identity_distances`; ages: index of each photo's age bin, [N]; impostors: of
    `impostor_distances`. The FAR threshold is that of the photo's bin; photos of a bin without pairs have none and are
    left out of the metrics at that threshold.
    """
    thresholds = np.array([np.quantile(impostors[i], FAR) if i in impostors else np.nan for i in ages])

    def metrics(own: np.ndarray, pairs: np.ndarray) -> dict:
        rebuilt, aged, threshold = per_face["reconstruction"][own], per_face["aged"][own], thresholds[own]
        known = np.isfinite(threshold)
        return {
            "faces": int(own.sum()),
            "reconstruction_verification": mean(rebuilt < SAME_PERSON),
            "aged_verification": mean(aged < SAME_PERSON),
            "pairs": len(pairs),
            "false_accept_rate": mean(pairs < SAME_PERSON),
            "far1_threshold": mean(threshold),
            "reconstruction_verification_far1": mean((rebuilt < threshold)[known]),
            "aged_verification_far1": mean((aged < threshold[:, np.newaxis])[known]),
        }

    none = np.empty(0)
    overall = metrics(np.ones(len(ages), bool), np.concatenate([none, *impostors.values()]))
    by_bin = {bins.names[i]: metrics(ages == i, impostors.get(i, none)) for i in np.unique(ages)}
    return {"overall": overall, "by_bin": by_bin}


# Tables.


def table_cells(head: str, groups: dict[str, dict], digits: dict[str, int] | None = None) -> list[list[str]]:
    """Return a table's cells, the header first, then a row per group; a missing value is an empty cell.

    digits: the decimals of each column; without it the columns are the metrics of METRICS, with four digits.
    """
    names = digits or dict.fromkeys(name for row in groups.values() for name in row if name in METRICS)

    def cell(value: float | str | None, decimals: int | None) -> str:
        if value is None or isinstance(value, int | str):
            return "" if value is None else str(value)
        return f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"

    rows = [[group, *(cell(row.get(name), names[name]) for name in names)] for group, row in groups.items()]
    return [[head, *names], *rows]


def markdown(head: str, groups: dict[str, dict], digits: dict[str, int]) -> str:
    """Return a table in Markdown, see `table_cells`."""
    header, *rows = table_cells(head, groups, digits)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def report(metrics: dict) -> str:
    """Return what `Evaluator.metrics` returned as plain tables, a row per metric and a column per group."""
    parts = {"all faces": {"all": metrics["overall"], **metrics["by_age"], **metrics["by_gender"]}}
    kept = f" (--detail {metrics['detail']:g})" if metrics.get("detail") else ""
    for name, head in (("aging", f"requested age{kept}"), ("identity", f"age of the photo{kept}")):
        if name in metrics:
            parts[head] = {"all": metrics[name]["overall"], **metrics[name]["by_bin"]}
    lines, names = [], []
    for head, groups in parts.items():
        columns = [[f"{cell:>{max(map(len, row))}}" for cell in row] for row in table_cells(head, groups)]
        names += [name.strip() for name in columns[0][1:]]
        lines += ["  ".join(row) for row in zip(*columns, strict=True)] + [""]
    return "\n".join([*lines, *(f"{name}: {METRICS[name]}" for name in dict.fromkeys(names))])
