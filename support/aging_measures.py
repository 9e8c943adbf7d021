"""How old generated faces look, as which gender, and whether they stay the person; open it to judge aging otherwise."""

import sys
from collections.abc import Sequence

import numpy as np

from support import recognition
from support.dataset import Face
from support.errors import InputError
from support.labels import FEMALE, AgeBins

SAME = 0.6  # dlib's own rule: closer embeddings are the same person's
PASSED = 0.01  # the share of other people that may pass a stricter rule
FACES_COMPARED = 100  # faces of which people are compared: dlib takes a tenth of a second for each of twelve pictures
OTHERS_COMPARED = 20  # photos of each gender and age bin that are compared with one another: 190 pairs
AGING_MEASURES = {  # what is measured of all bins together, and its meaning
    "youngest": "mean age seen in the faces made at the youngest bin, in years",
    "oldest": "mean age seen in the faces made at the oldest bin, in years",
    "span": "years from the one to the other",
    "rank_correlation": "Spearman's correlation of the age asked for and the age seen over the bins, mean over faces",
    "centre_error": "mean distance of the age seen from the centre of the bin asked for, in years",
    "gender_obeyed": "share of the faces made, at every bin once as male and once as female, seen as the gender asked",
    "real_age_error": "mean absolute error of the ages seen in the real faces, in years: the judge's own",
    "real_gender_right": "share of the real faces whose gender is seen: the judge's own",
}
BIN_MEASURES = {  # what is measured of an age bin, of the faces made at it and of the real faces in it
    "centre": "the age asked for, in years",
    "age_seen": "mean age seen in the faces made, in years",
    "centre_error": AGING_MEASURES["centre_error"],
    "gender_obeyed": AGING_MEASURES["gender_obeyed"],
    "real_faces": "how many real faces are in the bin",
    "real_age": "their mean age, in years",
    "real_age_seen": "mean age seen in them, in years",
    "real_age_error": AGING_MEASURES["real_age_error"],
    "real_gender_right": AGING_MEASURES["real_gender_right"],
}
IDENTITY_MEASURES = {  # what is measured of rebuilt and aged faces beside the photos of an age bin, and its meaning
    "faces": "how many photos",
    "rebuilt_same": f"share of the reconstructions within {SAME} of the photo: dlib's rule for the same person",
    "aged_same": f"share of the faces made, at every bin, within {SAME} of the photo",
    "pairs": "how many pairs of photos of other people, of one gender and age bin",
    "others_same": f"share of those pairs within {SAME}: what the rule is worth there",
    "distance": f"the distance that {PASSED:.0%} of those pairs come within, mean over photos",
    "rebuilt_strict": "share of the reconstructions within that distance of the photo",
    "aged_strict": "share of the faces made, at every bin, within that distance of the photo",
}


def mean(values: np.ndarray) -> float | None:
    """The mean of those values that are numbers; None where there are none."""
    values = np.asarray(values, float)
    return round(float(np.nanmean(values)), 5) if np.isfinite(values).any() else None


def rank_correlation(centres: list[float], seen: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation, [N], of the bins' centres and the ages seen, [N, bins]; 0 where all are equal."""
    from scipy.stats import rankdata  # slow to import, and only needed here

    ranks = rankdata(seen, axis=1) - (len(centres) + 1) / 2
    asked = rankdata(centres) - (len(centres) + 1) / 2
    return ranks @ asked / np.maximum(np.linalg.norm(ranks, axis=1) * np.linalg.norm(asked), 1e-10)


def look(images: np.ndarray, aged: np.ndarray, other: np.ndarray, genders: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what the network of age and gender sees, arrays [N, ...] by name, for `aging`.

    images: real faces, uint8 [N, S, S, C]; aged: the same people made at every age bin as their own gender, uint8
    [bins, N, S, S, C]; other: as the other gender; genders: label vectors, [N, 2].
    """
    gender = genders[:, FEMALE]

    def right(female: np.ndarray, asked: np.ndarray) -> np.ndarray:
        # where no gender is known, none was asked for
        return np.where(asked == 0, np.nan, (female > 0.5) == (asked > 0))

    age, female = recognition.ages_and_genders(images)
    own = [recognition.ages_and_genders(faces) for faces in aged]
    opposite = [recognition.ages_and_genders(faces) for faces in other]
    obeyed = [[right(seen, gender) for _, seen in own], [right(seen, -gender) for _, seen in opposite]]
    return {
        "real_age_seen": age,  # [N]
        "real_right": right(female, gender),  # [N]
        "age_seen": np.stack([seen for seen, _ in own], axis=1),  # [N, bins]
        "obeyed": np.transpose(obeyed, [2, 0, 1]),  # [N, own and other gender, bins]
    }


def aging(each: dict[str, np.ndarray], bins: AgeBins) -> dict:
    """Returns {"overall": AGING_MEASURES, "by_bin": {bin: BIN_MEASURES}} of what `look` returned of N faces.

    Among the arrays are also "years", the ages [N] of the real faces. What there is nothing to measure of is None.
    """
    years = each["years"]
    seen, real = each["age_seen"], each["real_age_seen"]
    distance, error = np.abs(seen - bins.centres), np.abs(real - years)
    youngest, oldest = seen[:, 0].mean(), seen[:, -1].mean()
    overall = {
        "youngest": mean(youngest),
        "oldest": mean(oldest),
        "span": mean(oldest - youngest),
        "rank_correlation": mean(rank_correlation(bins.centres, seen)),
        "centre_error": mean(distance),
        "gender_obeyed": mean(each["obeyed"]),
        "real_age_error": mean(error),
        "real_gender_right": mean(each["real_right"]),
    }
    by_bin, index = {}, bins.index(years)
    for i, name in enumerate(bins.names):
        own = index == i
        by_bin[name] = {
            "centre": bins.centres[i],
            "age_seen": mean(seen[:, i]),
            "centre_error": mean(distance[:, i]),
            "gender_obeyed": mean(each["obeyed"][:, :, i]),
            "real_faces": int(own.sum()),
            "real_age": mean(years[own]),
            "real_age_seen": mean(real[own]),
            "real_age_error": mean(error[own]),
            "real_gender_right": mean(each["real_right"][own]),
        }
    return {"overall": overall, "by_bin": by_bin, "units": AGING_MEASURES | BIN_MEASURES}


def people_are_told_apart() -> bool:
    """Whether identity can be measured; where dlib is missing one line on stderr says what to install."""
    try:
        recognition.dlib_models()
    except InputError as error:
        print(f"{error}; everything else is measured", file=sys.stderr)
        return False
    return True


def compare_people(images: np.ndarray, reconstructions: np.ndarray, aged: np.ndarray) -> dict[str, np.ndarray]:
    """Returns how far dlib's embeddings lie from those of the photos, arrays [N, ...] by name, for `identity`.

    images: the photos, uint8 [N, S, S, C]; reconstructions alike; aged: at every age bin, uint8 [bins, N, S, S, C].
    Takes about a second a face. Raises InputError where dlib is missing.
    """
    photos = recognition.embeddings(images)

    def distance(faces: np.ndarray) -> np.ndarray:
        return np.linalg.norm(recognition.embeddings(faces) - photos, axis=1)

    return {
        "rebuilt": distance(reconstructions),  # [N]
        "aged": np.stack([distance(faces) for faces in aged], axis=1),  # [N, bins]
    }


def choose_others(faces: Sequence[Face], bins: AgeBins) -> list[Face]:
    """Returns the first OTHERS_COMPARED faces of each gender and age bin."""
    groups = {}
    for face, i in zip(faces, bins.index([face.age for face in faces]), strict=True):
        groups.setdefault((i, face.gender), []).append(face)
    return [face for group in groups.values() for face in group[:OTHERS_COMPARED]]


def distances_of_others(images: np.ndarray, faces: Sequence[Face], bins: AgeBins) -> dict[int, np.ndarray]:
    """Returns, by the index of the age bin, the distances of all pairs of photos of one gender; no pairs, no entry.

    images: photos of the faces, uint8 [N, S, S, C], each of another person. Raises InputError where dlib is missing.
    """
    embeddings = recognition.embeddings(images)
    ages, genders = bins.index([face.age for face in faces]), np.array([face.gender for face in faces])
    found = {}
    for i in np.unique(ages):
        pairs = [distances_of_pairs(embeddings[(ages == i) & (genders == gender)]) for gender in np.unique(genders)]
        if sum(map(len, pairs)):
            found[int(i)] = np.concatenate(pairs)
    return found


def distances_of_pairs(embeddings: np.ndarray) -> np.ndarray:
    """Returns the distances of all pairs of embeddings, [N, 128]: float [N * (N - 1) / 2]."""
    one, other = np.triu_indices(len(embeddings), 1)
    return np.linalg.norm(embeddings[one] - embeddings[other], axis=1)


def identity(each: dict[str, np.ndarray], others: dict[int, np.ndarray], bins: AgeBins) -> dict:
    """Returns {"overall": IDENTITY_MEASURES, "by_bin": {bin: measures}} of what `compare_people` returned of N photos.

    Among the arrays are also "years", the ages [N] of the photos; others: what `distances_of_others` returned. A bin
    here is that of the photo. The stricter distance is the bin's own; without pairs its photos are left out there.
    """
    ages = bins.index(each["years"])
    strict = np.array([np.quantile(others[i], PASSED) if i in others else np.nan for i in ages])
    by_bin = {}
    for i in np.unique(ages):
        by_bin[bins.names[i]] = shares(each, ages == i, others.get(i, np.empty(0)), strict)
    every_pair = np.concatenate([np.empty(0), *others.values()])
    overall = shares(each, np.ones(len(ages), bool), every_pair, strict)
    return {"overall": overall, "by_bin": by_bin, "units": IDENTITY_MEASURES}


def shares(each: dict[str, np.ndarray], own: np.ndarray, others: np.ndarray, strict: np.ndarray) -> dict:
    """Returns IDENTITY_MEASURES of the faces `own`, bool [N], of N; others: distances of pairs; strict: [N]."""
    rebuilt, aged, strict = each["rebuilt"][own], each["aged"][own], strict[own]
    known = np.isfinite(strict)
    return {
        "faces": int(own.sum()),
        "rebuilt_same": mean(rebuilt < SAME),
        "aged_same": mean(aged < SAME),
        "pairs": len(others),
        "others_same": mean(others < SAME),
        "distance": mean(strict),
        "rebuilt_strict": mean((rebuilt < strict)[known]),
        "aged_strict": mean((aged < strict[:, np.newaxis])[known]),
    }


def table(measured: dict) -> str:
    """Returns what `aging` and `identity` returned, the latter where it is there, as plain tables, meanings below."""
    lines = []
    for part, head in (("aging", "bin asked for"), ("identity", "photo's bin")):
        if part not in measured:
            continue
        overall, by_bin, units = (measured[part][name] for name in ("overall", "by_bin", "units"))
        columns = list(next(iter(by_bin.values())))
        lines += ["", "".join(f"{name:>18}" for name in (head, *columns))]
        for name, row in {**by_bin, "all": overall}.items():
            cells = (row.get(column) for column in columns)
            lines.append("".join(f"{'' if cell is None else cell:>18}" for cell in (name, *cells)))
        lines += [f"{name}: {'' if part == 'identity' else f'{overall[name]}, '}{units[name]}" for name in overall]
    return "\n".join(lines)
