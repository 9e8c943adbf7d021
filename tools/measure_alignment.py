"""Measure how well support/alignment.py finds faces; with `fit`, make the statistics it ships again.

    python -m tools.measure_alignment data/UTKFace                  everything below but fit
    python -m tools.measure_alignment data/UTKFace scenes photos    of these only

template  where the set's own faces have eyes, nose and mouth, and how far they spread: TEMPLATE of alignment.py
scenes    aligned faces set into larger canvases at known places, sizes and tilts: how many come back, and how near
empty     images without a face, in all four quarter turns: how many faces are found in them
photos    photos of public domain that scikit-image and matplotlib ship, turned, tilted, shrunk, stretched, in groups
time      seconds of CPU for photos of 1, 12 and 108 megapixels after the first, and the memory they take
doubts    how often looks_aligned doubts aligned faces, and others
fit       support/pretrained/aligned_face.npy, from faces that the other measures leave out

In a scene the truth is the map that set the face in: a face has come back where its eyes (or the corners of its mouth),
as TEMPLATE has them, are less than 5% of the crop's width from where they were in the aligned picture. In a changed
photo the truth is what is found in the photo itself, moved as the photo was. A face not found counts as a miss.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from support import alignment
from support.alignment import TEMPLATE, Detections, apply, find_faces, looks_aligned, side_of, similarity

FITTED = 6000  # faces of the shuffled set: a half to fit, a half to set the threshold; the other measures use the rest
FALSE_ALARMS = 0.002
EYES, MOUTH = TEMPLATE[:2], TEMPLATE[3:]
EMPTY = (
    "brick cell chelsea chessboard_GRAY chessboard_RGB clock_motion coffee color grass gravel horse hubble_deep_field "
    "ihc logo microaneurysms moon motorcycle_left motorcycle_right page phantom retina rocket text"
)  # chelsea is a cat; coins has heads on it and lfw_subset has faces, so they are left out
KINDS = ("noise", "tiles", "a slope", "stripes", "blotches", "clouds")


def texture(rng: np.random.Generator, width: int, height: int, kind: str = "") -> Image.Image:
    """An image of one of KINDS, chosen at random where none is given."""

    def stretched(pixels: np.ndarray) -> np.ndarray:
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(pixels, 2, 0)]
        return np.dstack([channel.resize((width, height), Image.Resampling.BILINEAR) for channel in channels])

    kind = kind or str(rng.choice(KINDS))
    if kind == "noise":
        pixels = rng.uniform(0, 255, (height, width, 3))
    elif kind == "tiles":
        tile = int(rng.integers(10, 50))
        colours = rng.uniform(0, 255, (height // tile + 1, width // tile + 1, 3))
        pixels = np.kron(colours, np.ones((tile, tile, 1)))[:height, :width]
    elif kind in ("a slope", "stripes"):
        y, x = np.mgrid[:height, :width]
        angle, first, second = rng.uniform(0, np.pi), *rng.uniform(0, 255, (2, 3))
        along = x * np.cos(angle) + y * np.sin(angle)
        slope = (along - along.min()) / np.ptp(along)
        share = slope if kind == "a slope" else np.sin(along / rng.uniform(1.5, 10)) > 0
        pixels = first + (second - first) * share[..., None]
    elif kind == "blotches":
        pixels = stretched(rng.uniform(0, 255, (*rng.integers(3, 12, 2), 3)))
    else:
        clouds = sum(stretched(rng.normal(size=(2**k, 2**k, 3))) / 2 ** (0.8 * k) for k in range(2, 8))
        pixels = 128 + 60 * clouds / clouds.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def scene(rng: np.random.Generator, face: Image.Image, size: tuple[int, int] | None = None):
    """A face set into a canvas, and its true frame there, float [2, 3]."""
    width, height = size or (int(side) for side in rng.integers(400, 1000, 2))
    side, tilt = rng.uniform(0.2, 0.6) * min(height, width), np.radians(rng.uniform(-20, 20))
    a = side * np.exp(1j * tilt)
    turn = np.array([(a.real, -a.imag), (a.imag, a.real)])
    middle = rng.uniform(0.75 * side, np.array([width, height]) - 0.75 * side)
    truth = np.column_stack([turn, middle - turn @ (0.5, 0.5)])
    canvas = texture(rng, width, height)
    # shrunk first, or turning a large face into a small one would alias
    small = face.resize([round(min(side, face.width))] * 2, Image.Resampling.BILINEAR)
    back = small.width * np.linalg.inv(turn)
    back = np.column_stack([back, -back @ truth[:, 2]]).ravel()
    placed = small.convert("RGBA").transform(canvas.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    canvas.paste(placed.convert("RGB"), mask=placed.getchannel("A"))
    return canvas, truth


def inside(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [N, 2] of a photo, in fractions of the aligned picture that a frame covers."""
    return np.linalg.solve(frame[:, :2], (points - frame[:, 2]).T).T


def displacement(frame: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
    """How far the worst of some points [N, 2] is from its place in the aligned picture, as a fraction of its width."""
    return float(np.hypot(*(inside(frame, apply(truth, points)) - points).T).max())


def matched(found: Detections, truths: list[np.ndarray]) -> tuple[list[np.ndarray | None], int]:
    """For each true frame the frame found nearest to it, or None, and how many others were found."""
    frames = [face.frame for face in found.faces]
    pairs: list[np.ndarray | None] = []
    for truth in truths:
        near = [i for i, frame in enumerate(frames) if displacement(frame, truth, TEMPLATE) < 0.4]
        pairs.append(frames.pop(near[0]) if near else None)
    return pairs, len(frames)


class Tally:
    """Counts of what came back, and where."""

    def __init__(self) -> None:
        self.eyes, self.mouths, self.false, self.images = [], [], 0, 0

    def add(self, found: Detections, truths: list[np.ndarray]) -> None:
        pairs, others = matched(found, truths)
        self.false += others
        self.images += 1
        for frame, truth in zip(pairs, truths, strict=True):
            self.eyes.append(np.inf if frame is None else displacement(frame, truth, EYES))
            self.mouths.append(np.inf if frame is None else displacement(frame, truth, MOUTH))

    def __str__(self) -> str:
        eyes, mouths = np.array(self.eyes), np.array(self.mouths)
        return (
            f"found {np.isfinite(eyes).mean():6.1%} of {len(eyes)}, false {self.false} in {self.images}; "
            f"eyes within 5% {(eyes < 0.05).mean():.1%}, within 3% {(eyes < 0.03).mean():.1%}, "
            f"median {np.median(eyes):.4f}; mouth {(mouths < 0.05).mean():.1%}, {(mouths < 0.03).mean():.1%}"
        )


def measure_template(paths: list[Path]) -> None:
    """Print where the set's own pictures have the five points, in fractions of their width and height."""
    points, count = [], 0
    for path in paths:
        picture = read(path)
        faces = find_faces(picture).faces
        count += len(faces)
        points += [face.points / picture.size for face in faces if abs(side_of(face.frame) / picture.width - 1) < 0.2]
    print(f"faces of the set, as photos: {len(points)} of {len(paths)} found, {count - len(points)} others found")
    names = ("left eye", "right eye", "nose", "mouth, left", "mouth, right")
    for name, (x, y), (across, down) in zip(names, np.median(points, axis=0), np.std(points, axis=0), strict=True):
        print(f"{name:13} ({x:.3f}, {y:.3f}); spread ({across:.3f}, {down:.3f})")


def measure_scenes(paths: list[Path], rng: np.random.Generator, sheet: Path | None) -> None:
    """Print how often faces come back in place; `sheet` is where to draw what came back."""
    tally, crops, seconds, sure, doubted = Tally(), [], [], [], []
    for path in paths:
        canvas, truth = scene(rng, read(path))
        begin = time.process_time()
        found = find_faces(canvas)
        seconds.append(time.process_time() - begin)
        tally.add(found, [truth])
        sure += [face.confidence for face in found.faces]
        doubted += [] if found.faces else found.rejected
        crops += [np.asarray(Image.fromarray(face.image).resize((128, 128))) for face in found.faces]
    print(f"scenes: {tally}; {np.mean(seconds[1:]):.2f} s of CPU")
    print(f"scenes: the least sure of the found {min(sure):.1%}; missed because not believed {doubted}")
    if sheet:
        rows = [np.hstack(crops[i : i + 10]) for i in range(0, min(len(crops), 60) // 10 * 10, 10)]
        Image.fromarray(np.vstack(rows)).save(sheet)


def empty_images(paths: list[Path], rng: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Images in which no human face is to be found, by what they are: 23 + 2 + 2 + 30 + 3 * 25."""
    for name in EMPTY.split():
        yield "photos and drawings of scikit-image", shipped(name)
    for name in ("Minduka_Present_Blue_Pack", "logo2"):
        yield "drawings of matplotlib", shipped(name)
    yield "uniforms", shipped("astronaut").crop((0, 230, 512, 512))
    yield "uniforms", shipped("grace_hopper").crop((0, 330, 512, 600))
    for i in range(30):
        yield "textures", texture(rng, *(int(side) for side in rng.integers(300, 900, 2)), KINDS[i % len(KINDS)])
    for path in paths[:25]:
        face = read(path).resize((400, 400), Image.Resampling.BICUBIC)
        yield "chins", face.crop((0, 300, 400, 400))
        yield "brows", face.crop((0, 0, 400, 80))
        blocks = np.asarray(face).reshape(4, 100, 4, 100, 3).swapaxes(1, 2).reshape(16, 100, 100, 3)
        shuffled = blocks[rng.permutation(16)].reshape(4, 4, 100, 100, 3).swapaxes(1, 2).reshape(400, 400, 3)
        yield "faces in 16 blocks, shuffled", Image.fromarray(shuffled)


def measure_empty(paths: list[Path], rng: np.random.Generator) -> None:
    """Print how many faces are found where there are none, and how near to being believed anything comes."""
    kinds: dict[str, list[int]] = {}
    surest = 0.0
    for kind, image in empty_images(paths, rng):
        kinds.setdefault(kind, []).append(len(find_faces(image).faces))
        points = np.concatenate([alignment.find_points(image, quarters) for quarters in range(4)])
        surest = max([surest, *(alignment.refine(image, five).confidence for five in points)])
    for kind, counts in kinds.items():
        print(f"without a face: {kind:36} {sum(counts)} found in {len(counts)}")
    everything = sum(kinds.values(), [])
    print(f"without a face: in all {sum(everything)} found in {len(everything)}; the surest {surest:.1%}")


def shipped(name: str) -> Image.Image:
    """An image that scikit-image or matplotlib ships, by its name without the ending."""
    try:
        import skimage
    except ImportError as error:
        raise SystemExit("the photos need scikit-image: pip install scikit-image") from error
    folders = Path(skimage.__file__).parent / "data", Path(matplotlib.get_data_path()) / "sample_data"
    path = next(path for folder in folders for path in sorted(folder.glob(f"{name}.*")))
    return Image.open(path).convert("RGB")


def changed(
    photo: Image.Image, degrees: float = 0, across: float = 1, down: float = 1
) -> tuple[Image.Image, np.ndarray]:
    """A photo stretched and then turned clockwise, and the map, float [2, 3], from its pixels to the new one's."""
    stretched = photo.resize((round(across * photo.width), round(down * photo.height)), Image.Resampling.LANCZOS)
    turned = stretched.rotate(-degrees, Image.Resampling.BICUBIC, expand=True)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([(c, -s), (s, c)]) * np.divide(stretched.size, photo.size)
    return turned, np.column_stack([turn, np.array(turned.size) / 2 - turn @ np.array(photo.size) / 2])


def changes(photo: Image.Image, points: np.ndarray) -> Iterator[tuple[str, Image.Image, np.ndarray]]:
    """A photo and the points of its face, changed in many ways."""
    kinds: dict[str, list[dict[str, float]]] = {
        "tilted by 10 to 40 degrees": [{"degrees": k * sign} for k in (10, 20, 30, 40) for sign in (-1, 1)],
        "on its sides and on its head": [{"degrees": k} for k in (90, 180, 270)],
        "shrunk to a half ... a fifth": [{"across": k, "down": k} for k in (0.5, 0.3, 0.2)],
        "stretched to 0.7 ... 1.5": [{"across": k} for k in (0.7, 0.8, 1.25, 1.5)],
        "enlarged twice and three times": [{"across": k, "down": k} for k in (2, 3)],
    }
    for kind, ways in kinds.items():
        for way in ways:
            image, moved = changed(photo, **way)
            yield kind, image, apply(moved, points)


def group(members: list[tuple[Image.Image, np.ndarray]], width: int, height: int, side: float):
    """Photos with one face each, side by side on a canvas, the faces `side` pixels wide; and their points there."""
    canvas, everyone = texture(np.random.default_rng(3), width, height, "clouds"), []
    for i, (photo, points) in enumerate(members):
        scale = side / side_of(similarity(TEMPLATE, points))
        small, moved = changed(photo, across=scale, down=scale)
        corner = np.array([round(width * (i + 0.5) / len(members)), height // 2]) - np.array(small.size) // 2
        canvas.paste(small, tuple(corner.tolist()))
        everyone.append(apply(moved, points) + corner)
    return canvas, everyone


def measure_photos() -> None:
    """Print how photos fare that PyPI packages ship, changed in many ways."""
    tallies: dict[str, Tally] = {}
    members = []
    for name in ("astronaut", "grace_hopper"):
        photo = shipped(name)
        found = find_faces(photo)
        print(f"photos: {name:12} as it is: {len(found.faces)} found, {len(found.rejected)} not believed")
        points = found.faces[0].points
        members.append((photo, points))
        for kind, image, moved in changes(photo, points):
            tallies.setdefault(kind, Tally()).add(find_faces(image), [similarity(TEMPLATE, moved)])
    for name, width, side in (("190", 4000, 190), ("66", 4000, 66), ("60", 1000, 60)):
        for quarters in (0, 1, 3):
            image, everyone = group(2 * members, width, width * 9 // 16, side)
            image, moved = changed(image, 90 * quarters)
            truths = [similarity(TEMPLATE, apply(moved, points)) for points in everyone]
            kind = f"four, {name} pixels each, of {width}"
            tallies.setdefault(kind + (", on its sides" if quarters else ""), Tally()).add(find_faces(image), truths)
    for kind, tally in tallies.items():
        print(f"photos: {kind:40} {tally}")
    found = find_faces(shipped("camera"))
    print(f"photos: camera, a man in profile: {len(found.faces)} found, not believed: {found.rejected}")


def measure_time(paths: list[Path], rng: np.random.Generator) -> None:
    """Print what photos of several sizes cost after the first."""

    def seconds(photos: list[Image.Image]) -> str:
        begin = time.process_time(), time.perf_counter()
        counts = [len(find_faces(photo).faces) for photo in photos]
        cpu, wall = (now - then for now, then in zip((time.process_time(), time.perf_counter()), begin, strict=True))
        return f"{cpu / len(photos):.2f} s of CPU, {wall / len(photos):.2f} s; {np.mean(counts):.2f} faces a photo"

    mega = [shipped(name).resize((1000, 1000)) for name in ("astronaut", "grace_hopper")]
    find_faces(mega[0])
    print(f"time: 1 megapixel, 2 photos:   {seconds(mega * 5)}")
    print(f"time: 1 megapixel, 30 scenes:  {seconds([scene(rng, read(path), (1000, 1000))[0] for path in paths[:30]])}")
    bare = [texture(rng, 1000, 1000, kind) for kind in KINDS] + [shipped("gravel").resize((1000, 1000))]
    print(f"time: 1 megapixel, no face:    {seconds(bare)} (searched four times)")
    for width, height in ((4000, 3000), (12000, 9000)):
        photo = shipped("grace_hopper").resize((width, height), Image.Resampling.BICUBIC)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = seconds([photo])
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
        print(f"time: {width * height / 1e6:.0f} megapixels: {spent}; the peak of memory rises by {more:.2f} GB")


def read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def unaligned(rng: np.random.Generator, face: Image.Image) -> dict[str, Image.Image]:
    """Images of 64 pixels that are no aligned face, by kind."""
    face = face.resize((64, 64), Image.Resampling.BILINEAR)
    kinds = {f"turned by {90 * k}": face.rotate(90 * k) for k in (1, 2, 3)}
    for name, share in (("face half as wide", 0.5), ("face three quarters as wide", 0.75)):
        side = int(64 * share)
        kinds[name] = texture(rng, 64, 64)
        kinds[name].paste(
            face.resize((side, side), Image.Resampling.BILINEAR), tuple(rng.integers(0, 65 - side, 2).tolist())
        )
    away = int(rng.choice([-20, 20]))
    columns = np.clip(np.arange(64) + away, 0, 63)
    kinds["30% off to a side"] = Image.fromarray(np.asarray(face)[:, columns])
    kinds["no face"] = texture(rng, 64, 64)
    return kinds


def measure_doubts(paths: list[Path], rng: np.random.Generator) -> None:
    """Print how often `looks_aligned` doubts aligned faces and others."""
    doubted: dict[str, list[bool]] = {}
    for path in paths:
        face = read(path)
        images = {
            "aligned (false alarms)": face,
            "whole scene": scene(rng, face, (600, 600))[0],
            **unaligned(rng, face),
        }
        for name, image in images.items():
            doubted.setdefault(name, []).append(not looks_aligned(np.asarray(image)))
    for name, doubts in doubted.items():
        print(f"doubts: {name:28} {np.mean(doubts):.1%} of {len(doubts)}")


def fit(paths: list[Path], rng: np.random.Generator) -> np.ndarray:
    """The discriminant of alignment.py, float16 [513], from half of the paths; its offset from the other half."""

    def inputs(image: Image.Image) -> np.ndarray:
        return alignment.features(np.asarray(image))

    half = len(paths) // 2
    good = np.array([inputs(read(path)) for path in paths[:half]])
    bad = np.array([inputs(image) for path in paths[:half] for image in unaligned(rng, read(path)).values()])
    good = good.repeat(len(bad) // len(good), axis=0)  # as many, or the bad ones would outweigh them
    both = np.vstack([good, bad])
    # ridge regression of +1 and -1
    squares = both.T @ both + 0.003 * len(both) * np.eye(both.shape[1])
    weights = np.linalg.solve(squares, good.sum(0) - bad.sum(0))
    weights[-1] -= np.quantile([inputs(read(path)) @ weights for path in paths[half:]], FALSE_ALARMS)
    return weights.astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure support/alignment.py on UTKFace and on photos.")
    parser.add_argument("folder", type=Path, help="UTKFace's aligned faces")
    every = ("template", "scenes", "empty", "photos", "time", "doubts", "fit")
    parser.add_argument("measures", nargs="*", choices=[*every, []], help="all but fit where none is named")
    parser.add_argument("--faces", type=int, default=500, help="faces to measure scenes on [%(default)s]")
    parser.add_argument("--many", type=int, default=1500, help="faces for template and doubts [%(default)s]")
    parser.add_argument("--seed", type=int, default=2017, help="[%(default)s]")
    parser.add_argument("--sheet", type=Path, help="draw what came back; shows faces, so keep it out of the repository")
    flags = parser.parse_args()
    paths = sorted(flags.folder.glob("*.jpg"))
    order = np.random.default_rng(0).permutation(len(paths))
    rng = np.random.default_rng(flags.seed)
    others = [paths[i] for i in rng.permutation(order[FITTED:])]
    measures: dict[str, Callable[[], None]] = {
        "template": lambda: measure_template([paths[i] for i in order[: flags.many]]),
        "scenes": lambda: measure_scenes(others[: flags.faces], rng, flags.sheet),
        "empty": lambda: measure_empty(others, rng),
        "photos": measure_photos,
        "time": lambda: measure_time(others, rng),
        "doubts": lambda: measure_doubts(others[: flags.many], rng),
        "fit": lambda: np.save(alignment.DISCRIMINANT, fit([paths[i] for i in order[:FITTED]], rng)),
    }
    for measure in flags.measures or every[:-1]:
        measures[measure]()


if __name__ == "__main__":
    main()
