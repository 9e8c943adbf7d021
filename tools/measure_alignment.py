"""Measure face detection and alignment: `python -m tools.measure_alignment data/UTKFace [MEASURE ...]`.

template  positions of eyes, nose and mouth in the data set and their spread: TEMPLATE of support/alignment.py
scenes    aligned faces placed in larger images at known positions, sizes and angles: detection rate and accuracy
empty     images without a face, in four orientations: number of detections
photos    public-domain photos of scikit-image and matplotlib: rotated, scaled, stretched, in groups
time      CPU seconds and memory for photos of 1, 12 and 108 megapixels after the first
doubts    how often looks_aligned doubts aligned and other images
fit       makes support/pretrained/aligned_face.npy again, from faces that the others do not use; only if it is named

The true position in a scene is known; that in a changed photo is the detection in the original, transformed as the
photo. A face is found within 5% if both eyes (or mouth corners) of TEMPLATE are within 5% of the crop's width.
"""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from support import InputError, alignment
from support.alignment import TEMPLATE, Detections, find_faces, frame_side, looks_aligned, map_points, similarity
from tools import command, make_parser, run

MEASURES = ("template", "scenes", "empty", "photos", "time", "doubts", "fit")
FITTED = 6000  # faces of the shuffled set: half to fit, half to set the threshold; the other measurements use the rest
FALSE_ALARMS = 0.002
EYES, MOUTH = TEMPLATE[:2], TEMPLATE[3:]
POINTS = ("left eye", "right eye", "nose", "mouth, left", "mouth, right")
EMPTY = (
    "brick cell chelsea chessboard_GRAY chessboard_RGB clock_motion coffee color grass gravel horse hubble_deep_field "
    "ihc logo microaneurysms moon motorcycle_left motorcycle_right page phantom retina rocket text"
)  # chelsea is a cat; coins and lfw_subset show faces
KINDS = ("noise", "tiles", "a slope", "stripes", "blotches", "clouds")
CHANGES = {  # of a photo, as arguments of `changed`
    "tilted by 10 to 40 degrees": [{"degrees": k * sign} for k in (10, 20, 30, 40) for sign in (-1, 1)],
    "rotated by 90, 180, 270 degrees": [{"degrees": k} for k in (90, 180, 270)],
    "scaled to a half ... a fifth": [{"across": k, "down": k} for k in (0.5, 0.3, 0.2)],
    "stretched to 0.7 ... 1.5": [{"across": k} for k in (0.7, 0.8, 1.25, 1.5)],
    "enlarged two and three times": [{"across": k, "down": k} for k in (2, 3)],
}
GROUPS = (("190", 4000, 190), ("66", 4000, 66), ("60", 1000, 60))  # name, width of the image, of a face


def read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def packaged(name: str) -> Image.Image:
    """Return an image of scikit-image or matplotlib by its name without suffix."""
    try:
        import skimage
    except ImportError as error:
        raise InputError("the photos are in scikit-image: pip install scikit-image") from error
    folders = Path(skimage.__file__).parent / "data", Path(matplotlib.get_data_path()) / "sample_data"
    return read(next(path for folder in folders for path in sorted(folder.glob(f"{name}.*"))))


def texture(rng: np.random.Generator, width: int, height: int, kind: str = "") -> Image.Image:
    """Return an image of one of KINDS, by default a random one."""

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
    """Return an image with a face placed in it, and the face's true frame there, float [2, 3]."""
    width, height = size or (int(side) for side in rng.integers(400, 1000, 2))
    side, tilt = rng.uniform(0.2, 0.6) * min(height, width), np.radians(rng.uniform(-20, 20))
    a = side * np.exp(1j * tilt)
    turn = np.array([(a.real, -a.imag), (a.imag, a.real)])
    middle = rng.uniform(0.75 * side, np.array([width, height]) - 0.75 * side)
    truth = np.column_stack([turn, middle - turn @ (0.5, 0.5)])
    canvas = texture(rng, width, height)
    # scaled down first, to avoid aliasing
    small = face.resize([round(min(side, face.width))] * 2, Image.Resampling.BILINEAR)
    back = small.width * np.linalg.inv(turn)
    back = np.column_stack([back, -back @ truth[:, 2]]).ravel()
    placed = small.convert("RGBA").transform(canvas.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    canvas.paste(placed.convert("RGB"), mask=placed.getchannel("A"))
    return canvas, truth


def displacement(frame: np.ndarray, truth: np.ndarray, points: np.ndarray) -> float:
    """Return the largest displacement of points [N, 2] of the aligned image, relative to its width."""
    inside = np.linalg.solve(frame[:, :2], (map_points(truth, points) - frame[:, 2]).T).T
    return float(np.hypot(*(inside - points).T).max())


class Tally:
    """Detections of known faces: displacements (infinite if missed), false detections, images."""

    def __init__(self) -> None:
        self.eyes, self.mouths, self.false, self.images = [], [], 0, 0

    def add(self, found: Detections, truths: list[np.ndarray]) -> None:
        frames = [face.frame for face in found.faces]
        for truth in truths:
            near = [i for i, frame in enumerate(frames) if displacement(frame, truth, TEMPLATE) < 0.4]
            frame = frames.pop(near[0]) if near else None
            for errors, points in ((self.eyes, EYES), (self.mouths, MOUTH)):
                errors.append(np.inf if frame is None else displacement(frame, truth, points))
        self.false += len(frames)
        self.images += 1

    def __str__(self) -> str:
        eyes, mouths = np.array(self.eyes), np.array(self.mouths)
        return (
            f"found {np.isfinite(eyes).mean():6.1%} of {len(eyes)}, false {self.false} in {self.images}; "
            f"eyes within 5% {(eyes < 0.05).mean():.1%}, within 3% {(eyes < 0.03).mean():.1%}, "
            f"median {np.median(eyes):.4f}; mouth {(mouths < 0.05).mean():.1%}, {(mouths < 0.03).mean():.1%}"
        )


def measure_template(paths: list[Path]) -> None:
    points, count = [], 0
    for path in paths:
        image = read(path)
        faces = find_faces(image).faces
        count += len(faces)
        points += [face.points / image.size for face in faces if abs(frame_side(face.frame) / image.width - 1) < 0.2]
    print(f"aligned faces used as photos: {len(points)} of {len(paths)} found, {count - len(points)} others found")
    for name, (x, y), (across, down) in zip(POINTS, np.median(points, axis=0), np.std(points, axis=0), strict=True):
        print(f"{name:13} ({x:.3f}, {y:.3f}); spread ({across:.3f}, {down:.3f})")


def measure_scenes(paths: list[Path], rng: np.random.Generator, sheet: Path | None) -> None:
    """Print the detection rate and accuracy; `sheet`: file for an image of the crops."""
    tally, crops, seconds, confidences, rejected = Tally(), [], [], [], []
    for path in paths:
        canvas, truth = scene(rng, read(path))
        begin = time.process_time()
        found = find_faces(canvas)
        seconds.append(time.process_time() - begin)
        tally.add(found, [truth])
        confidences += [face.confidence for face in found.faces]
        rejected += [] if found.faces else found.rejected
        crops += [np.asarray(Image.fromarray(face.image).resize((128, 128))) for face in found.faces]
    print(f"scenes: {tally}; {np.mean(seconds[1:]):.2f} s of CPU time")
    print(f"scenes: lowest confidence of the found {min(confidences):.1%}; rejected in missed ones {rejected}")
    if sheet:
        rows = [np.hstack(crops[i : i + 10]) for i in range(0, min(len(crops), 60) // 10 * 10, 10)]
        Image.fromarray(np.vstack(rows)).save(sheet)


def empty_images(paths: list[Path], rng: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    """Yield images without a human face, by kind: 23 + 2 + 2 + 30 + 3 * 25."""
    for name in EMPTY.split():
        yield "photos and drawings of scikit-image", packaged(name)
    for name in ("Minduka_Present_Blue_Pack", "logo2"):
        yield "drawings of matplotlib", packaged(name)
    yield "uniforms", packaged("astronaut").crop((0, 230, 512, 512))
    yield "uniforms", packaged("grace_hopper").crop((0, 330, 512, 600))
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
    """Print the false detections, and the highest confidence of anything."""
    kinds, highest = defaultdict(list), 0.0
    for kind, image in empty_images(paths, rng):
        kinds[kind].append(len(find_faces(image).faces))
        points = np.concatenate([alignment.find_points(image, quarters) for quarters in range(4)])
        highest = max([highest, *(alignment.refine(image, five).confidence for five in points)])
    for kind, counts in {**kinds, "all": sum(kinds.values(), [])}.items():
        print(f"without a face: {kind:36} {sum(counts)} found in {len(counts)}")
    print(f"without a face: highest confidence {highest:.1%}")


def changed(
    photo: Image.Image, degrees: float = 0, across: float = 1, down: float = 1
) -> tuple[Image.Image, np.ndarray]:
    """Return a photo stretched, then rotated clockwise, and the map, float [2, 3], from its pixels to the new ones."""
    stretched = photo.resize((round(across * photo.width), round(down * photo.height)), Image.Resampling.LANCZOS)
    turned = stretched.rotate(-degrees, Image.Resampling.BICUBIC, expand=True)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([(c, -s), (s, c)]) * np.divide(stretched.size, photo.size)
    return turned, np.column_stack([turn, np.array(turned.size) / 2 - turn @ np.array(photo.size) / 2])


def group(members: list[tuple[Image.Image, np.ndarray]], width: int, height: int, side: float):
    """Return photos of one face each side by side in one image, faces `side` pixels wide, and their points there."""
    canvas, placed = texture(np.random.default_rng(3), width, height, "clouds"), []
    for i, (photo, points) in enumerate(members):
        scale = side / frame_side(similarity(TEMPLATE, points))
        small, moved = changed(photo, across=scale, down=scale)
        corner = np.array([round(width * (i + 0.5) / len(members)), height // 2]) - np.array(small.size) // 2
        canvas.paste(small, tuple(corner.tolist()))
        placed.append(map_points(moved, points) + corner)
    return canvas, placed


def measure_photos() -> None:
    tallies, members = defaultdict(Tally), []

    def add(kind: str, image: Image.Image, faces: list[np.ndarray]) -> None:
        tallies[kind].add(find_faces(image), [similarity(TEMPLATE, points) for points in faces])

    for name in ("astronaut", "grace_hopper", "camera"):  # camera: a man in profile
        photo = packaged(name)
        found = find_faces(photo)
        print(f"photos: {name:12} unchanged: {len(found.faces)} found, rejected: {found.rejected}")
        if name == "camera":
            continue
        points = found.faces[0].points
        members.append((photo, points))
        for kind, ways in CHANGES.items():
            for image, moved in (changed(photo, **way) for way in ways):
                add(kind, image, [map_points(moved, points)])
    for name, width, side in GROUPS:
        for quarters in (0, 1, 3):
            image, faces = group(2 * members, width, width * 9 // 16, side)
            image, moved = changed(image, 90 * quarters)
            kind = f"four of {name} pixels in {width}{', rotated' if quarters else ''}"
            add(kind, image, [map_points(moved, points) for points in faces])
    for kind, tally in tallies.items():
        print(f"photos: {kind:40} {tally}")


def measure_time(paths: list[Path], rng: np.random.Generator) -> None:
    def cost(what: str, photos: list[Image.Image]) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.process_time(), time.perf_counter()
        counts = [len(find_faces(photo).faces) for photo in photos]
        cpu, wall = (now - then for now, then in zip((time.process_time(), time.perf_counter()), begin, strict=True))
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1e6
        print(
            f"time: {what:24} {cpu / len(photos):.2f} s of CPU time, {wall / len(photos):.2f} s; "
            f"{np.mean(counts):.2f} faces a photo; peak memory + {more:.2f} GB"
        )

    mega = [packaged(name).resize((1000, 1000)) for name in ("astronaut", "grace_hopper")]
    find_faces(mega[0])
    cost("1 megapixel", mega * 5)
    cost("1 megapixel, scenes", [scene(rng, read(path), (1000, 1000))[0] for path in paths[:30]])
    bare = [texture(rng, 1000, 1000, kind) for kind in KINDS] + [packaged("gravel").resize((1000, 1000))]
    cost("1 megapixel, no face", bare)  # searched in four orientations
    for width, height in ((4000, 3000), (12000, 9000)):
        photo = packaged("grace_hopper").resize((width, height), Image.Resampling.BICUBIC)
        cost(f"{width * height / 1e6:.0f} megapixels", [photo])


def unaligned(rng: np.random.Generator, face: Image.Image) -> dict[str, Image.Image]:
    """Return images of 64 pixels that are not aligned faces, by kind."""
    face = face.resize((64, 64), Image.Resampling.BILINEAR)
    kinds = {f"rotated by {90 * k}": face.rotate(90 * k) for k in (1, 2, 3)}
    for name, share in (("face half as wide", 0.5), ("face three quarters as wide", 0.75)):
        side = int(64 * share)
        kinds[name] = texture(rng, 64, 64)
        small = face.resize((side, side), Image.Resampling.BILINEAR)
        kinds[name].paste(small, tuple(rng.integers(0, 65 - side, 2).tolist()))
    columns = np.clip(np.arange(64) + int(rng.choice([-20, 20])), 0, 63)
    kinds["shifted by 30%"] = Image.fromarray(np.asarray(face)[:, columns])
    kinds["no face"] = texture(rng, 64, 64)
    return kinds


def measure_doubts(paths: list[Path], rng: np.random.Generator) -> None:
    doubted = defaultdict(list)
    for path in paths:
        face = read(path)
        images = {"aligned (false alarms)": face, "scene": scene(rng, face, (600, 600))[0], **unaligned(rng, face)}
        for name, image in images.items():
            doubted[name].append(not looks_aligned(np.asarray(image)))
    for name, doubts in doubted.items():
        print(f"doubts: {name:28} {np.mean(doubts):.1%} of {len(doubts)}")


def features(image: Image.Image) -> np.ndarray:
    return alignment.features(np.asarray(image))


def fit(paths: list[Path], rng: np.random.Generator) -> np.ndarray:
    """Return the discriminant of support/alignment.py, float16 [513]: half of the paths fit it, half its threshold."""

    half = len(paths) // 2
    good = np.array([features(read(path)) for path in paths[:half]])
    bad = np.array([features(image) for path in paths[:half] for image in unaligned(rng, read(path)).values()])
    good = good.repeat(len(bad) // len(good), axis=0)  # equal weights of both classes
    both = np.vstack([good, bad])
    # ridge regression of +1 and -1
    squares = both.T @ both + 0.003 * len(both) * np.eye(both.shape[1])
    weights = np.linalg.solve(squares, good.sum(0) - bad.sum(0))
    weights[-1] -= np.quantile([features(read(path)) @ weights for path in paths[half:]], FALSE_ALARMS)
    return weights.astype(np.float16)


@command
def measure_alignment(argv: list[str]) -> int:
    parser = make_parser(measure_alignment)
    parser.add_argument("folder", type=Path, help="UTKFace's aligned faces")
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []], help="by default all but fit")
    parser.add_argument("--faces", type=int, default=500, help="number of scenes [%(default)s]")
    parser.add_argument("--many", type=int, default=1500, help="faces for template and doubts [%(default)s]")
    parser.add_argument("--seed", type=int, default=2017, help="[%(default)s]")
    parser.add_argument("--sheet", type=Path, help="an image of the crops; it shows people of the data set")
    flags = parser.parse_args(argv)
    paths = sorted(flags.folder.glob("*.jpg"))
    order = np.random.default_rng(0).permutation(len(paths))
    rng = np.random.default_rng(flags.seed)
    others = [paths[i] for i in rng.permutation(order[FITTED:])]
    measures = {
        "template": lambda: measure_template([paths[i] for i in order[: flags.many]]),
        "scenes": lambda: measure_scenes(others[: flags.faces], rng, flags.sheet),
        "empty": lambda: measure_empty(others, rng),
        "photos": measure_photos,
        "time": lambda: measure_time(others, rng),
        "doubts": lambda: measure_doubts(others[: flags.many], rng),
        "fit": lambda: np.save(alignment.DISCRIMINANT, fit([paths[i] for i in order[:FITTED]], rng)),
    }
    for measure in flags.measures or MEASURES[:-1]:
        measures[measure]()
    return 0


if __name__ == "__main__":
    run(measure_alignment)
