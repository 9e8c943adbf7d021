"""The data set `demo`, drawn: plain faces whose look depends on age, gender and person; open it to change it."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw

from support.labels import AGE_BOUNDS, MALE

SIZE = 128  # pixels of a finished picture
CANVAS = 3 * SIZE  # drawn larger, then averaged: smooth edges
YOUNGEST, OLDEST = 1, 90

SKINS = ((234, 194, 170), (164, 116, 90), (230, 192, 156), (194, 148, 114), (212, 168, 138))  # by UTKFace's race code
HAIRS = ((38, 31, 30), (62, 43, 35), (98, 68, 48), (139, 98, 66), (184, 144, 92), (138, 74, 48))  # the first two: dark
EYES = ((74, 48, 32), (96, 68, 40), (94, 112, 84), (82, 124, 164))
GREY, WHITE, BLACK = (214, 213, 212), (250, 250, 250), (28, 22, 22)
ROSE, RED, BLOOD, FRAME = (206, 84, 88), (176, 32, 48), (70, 24, 16), (58, 48, 46)

# What a baby has, a grown woman, a grown man, and what old age adds: places and half sizes in widths of the picture,
# x from the middle of the face, y down from the eyes.
FEATURES = {
    "top": (0.40, 0.47, 0.47, 0.0),
    "temple": (0.350, 0.322, 0.350, 0.0),
    "cheek": (0.362, 0.310, 0.346, -0.010),
    "jaw": (0.300, 0.226, 0.298, 0.022),
    "chin_width": (0.160, 0.105, 0.155, 0.010),
    "chin": (0.325, 0.490, 0.530, 0.010),
    "neck": (0.150, 0.180, 0.250, 0.0),
    "eye": (0.126, 0.145, 0.145, 0.0),
    "eye_width": (0.078, 0.078, 0.074, -0.004),
    "eye_height": (0.046, 0.035, 0.029, -0.010),
    "iris": (0.044, 0.036, 0.033, 0.0),
    "brow": (-0.102, -0.110, -0.088, 0.006),
    "brow_width": (0.012, 0.020, 0.042, 0.004),
    "tip": (0.115, 0.195, 0.212, 0.020),
    "wing": (0.042, 0.052, 0.062, 0.008),
    "mouth": (0.205, 0.310, 0.330, 0.018),
    "mouth_width": (0.078, 0.106, 0.114, 0.0),
    "lip": (0.028, 0.036, 0.026, -0.013),
}

# Hairlines from left to right: x in half widths of the head, y in widths of the picture.
HAIRLINE = np.array((-1, -0.97, -0.78, -0.42, 0.05, 0.45, 0.8, 0.97, 1))
CUT_SHORT = np.array((0.06, -0.09, -0.22, -0.28, -0.27, -0.28, -0.22, -0.09, 0.06))
BOYS_FRINGE = np.array((0.06, -0.1, -0.19, -0.2, -0.19, -0.22, -0.19, -0.1, 0.06))
FRINGE = np.array((0.14, -0.06, -0.17, -0.18, -0.18, -0.18, -0.17, -0.06, 0.14))
PARTED = np.array((0.2, -0.03, -0.16, -0.27, -0.37, -0.3, -0.18, -0.03, 0.2))
RECEDED = np.array((0, -0.05, -0.22, -0.12, -0.15, -0.12, -0.22, -0.05, 0))  # added on a bald head

T = np.arange(4) / 4  # where along the segment between the middle two of four points; their weights, [4, 4]:
CATMULL_ROM = (
    np.stack([-T + 2 * T**2 - T**3, 2 - 5 * T**2 + 3 * T**3, T + 4 * T**2 - 3 * T**3, T**3 - T**2], axis=1) / 2
)
ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
SPOT = np.clip(255 - 2.0 * np.asarray(Image.radial_gradient("L").reduce(4)), 0, 255)  # bright in the middle, [64, 64]

Colour = tuple[int, int, int]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Returns the colour `share` (0 to 1) of the way from `first` to `second`."""
    return tuple(int(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def curve(xs, ys, closed: bool = False) -> np.ndarray:
    """Returns a smooth path [M, 2] through the points `xs`, `ys` (a Catmull-Rom spline)."""
    points = np.array((xs, ys), float).T
    around = (points[-1:], points, points[:2]) if closed else (points[:1], points, points[-1:], points[-1:])
    points = np.concatenate(around)
    return (CATMULL_ROM @ np.stack([points[:-3], points[1:-2], points[2:-1], points[3:]], axis=1)).reshape(-1, 2)


class Canvas:
    """A picture drawn in the face's coordinates: x from its middle, y down from its eyes, in widths of the picture."""

    def __init__(self, background: Colour, eye_line: float, tilt: float):
        self.image = Image.new("RGB", (CANVAS, CANVAS), background)
        self.draw = ImageDraw.Draw(self.image, "RGBA")  # "RGBA": colours with an alpha blend
        self.origin = np.array([0.5, eye_line]) * CANVAS
        self.turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]) * CANVAS

    def fill(self, points: np.ndarray, colour: Colour, alpha: float = 1) -> None:
        """Fills the polygon `points` [N, 2]."""
        self.draw.polygon((points @ self.turn + self.origin).ravel().tolist(), fill=(*colour, int(255 * alpha)))

    def oval(self, x: float, y: float, width: float, height: float, colour: Colour, alpha: float = 1) -> None:
        """Fills an ellipse of the half axes `width` and `height`."""
        self.fill(CIRCLE * (width, height) + (x, y), colour, alpha)

    def shape(self, xs, ys, colour: Colour, alpha: float = 1) -> None:
        """Fills the smooth symmetrical outline whose right half goes through `xs`, `ys`, from middle to middle."""
        xs, ys = np.array(xs), np.array(ys)
        self.fill(curve([*xs, *-xs[-2:0:-1]], [*ys, *ys[-2:0:-1]], closed=True), colour, alpha)

    def stroke(self, xs, ys, width: float, colour: Colour, alpha: float = 1, pair: bool = False) -> None:
        """Draws a brush stroke, pointed at its ends, through `xs`, `ys`; as a `pair`, on both sides of the face."""
        if alpha < 0.02:
            return
        path = curve(xs, ys)
        along = np.concatenate([path[1:2] - path[:1], path[2:] - path[:-2], path[-1:] - path[-2:-1]])
        share = np.arange(len(path)) / (len(path) - 1)
        half = width * np.sqrt(share * (1 - share)) / (np.sqrt((along**2).sum(axis=1)) + 1e-9)
        across = along[:, ::-1] * (-1, 1) * half[:, None]
        outline = np.concatenate([path + across, (path - across)[::-1]])
        for side in (1, -1)[: 1 + pair]:
            self.fill(outline * (side, 1), colour, alpha)

    def glow(self, x: float, y: float, width: float, height: float, colour: Colour, alpha: float) -> None:
        """Lays a soft spot of the half axes `width` and `height`, strongest (`alpha`) in its middle."""
        left, top = (np.array([x, y]) @ self.turn + self.origin - np.array([width, height]) * CANVAS).astype(int)
        spot = Image.fromarray((alpha * SPOT).astype(np.uint8))
        spot = spot.resize((int(2 * width * CANVAS), int(2 * height * CANVAS)), Image.Resampling.BILINEAR)
        self.image.paste(colour, (int(left), int(top)), spot)


def draw_person(rng: np.random.Generator) -> SimpleNamespace:
    """Returns the traits, drawn from `rng`, that a person keeps at every age; `..._luck` is uniform in [0, 1)."""
    race = int(rng.integers(5))  # UTKFace's code; here it only follows the skin
    return SimpleNamespace(
        race=race,
        skin=mix(SKINS[race], BLACK, rng.uniform(0, 0.06)),
        hair=HAIRS[rng.integers(6 if race in (0, 4) else 2)],
        eyes=EYES[rng.integers(4 if race == 0 else 2)],
        background=mix(rng.integers(40, 216, 3).tolist(), (186, 194, 200), 0.78),
        clothes=mix(rng.integers(30, 220, 3).tolist(), (110, 110, 120), 0.3),
        width=rng.uniform(-0.015, 0.015),
        jaw=rng.uniform(-0.02, 0.02),
        chin=rng.uniform(-0.015, 0.015),
        eye=rng.uniform(-0.006, 0.006),
        tilt=rng.uniform(-0.09, 0.09),  # radians
        light=rng.uniform(-1, 1),  # from the left, from the right
        smile=rng.uniform(0, 1),
        part=rng.choice((-1, 1)),  # the side of the parting
        **{f"{name}_luck": rng.uniform() for name in ("hair", "beard", "bald", "grey", "glasses", "lips")},
    )


def look(who: SimpleNamespace, age: int, gender: int) -> SimpleNamespace:
    """Returns how `who` looks at `age` (years): proportions, colours, how far hair and skin have aged (0 to 1)."""
    male = gender == MALE
    grown = np.interp(age, (1, 5, 10, 15, 20), (0, 0.35, 0.6, 0.83, 1))
    old = np.interp(age, (25, 40, 60, 80), (0, 0.2, 0.65, 1))
    face = SimpleNamespace(age=age, grown=grown, old=old, male=male)
    for name, (baby, woman, man, change) in FEATURES.items():
        setattr(face, name, baby + grown * ((man if male else woman) - baby) + old * change)
    face.temple, face.cheek, face.jaw = face.temple + who.width, face.cheek + who.width, face.jaw + who.width + who.jaw
    face.chin, face.eye = face.chin + who.chin, face.eye + who.eye
    face.man = male * np.interp(age, (12, 20), (0, 1))
    face.woman = (not male) * np.interp(age, (1, 4, 10, 17), (0, 0.3, 0.6, 1))
    grey = np.interp(age + 12 * (who.grey_luck - 0.5) - 2 * (not male), (28, 40, 60, 76), (0, 0.2, 0.75, 1))
    face.hair = mix(who.hair, GREY, grey)
    face.brows = mix(face.hair, who.hair, 0.4)
    face.skin = mix(mix(who.skin, ROSE, 0.06 * (1 - grown)), (216, 196, 180), 0.14 * old)
    face.dark, face.pale = mix(who.skin, BLOOD, 0.55), mix(who.skin, WHITE, 0.5)
    face.bald = face.man * np.interp(age, (22, 48, 70), (0, 0.5, 1)) * np.interp(who.bald_luck, (0, 0.3), (0.3, 1))
    face.hair_alpha = np.interp(age, (1, 4), (0.3, 1)) * (1 - 0.3 * face.bald)
    thick = np.interp(age, (1, 5, 15, 60, 90), (0, 0.02, 0.055, 0.045, 0.03)) + (0.045 + 0.015 * old) * face.woman
    thick *= 1 - 0.6 * face.bald
    face.hair_width, face.hair_top = face.temple + thick, face.top + thick
    length = np.interp(age, (1, 3, 5, 14, 26, 40, 60, 80), (0, 0.25, 0.45, 0.75, 0.75, 0.58, 0.42, 0.25))
    face.hair_end = 0.06 if male else length * (0.85 + 0.3 * who.hair_luck)  # how far down it falls
    return face


def draw_head(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws what lies behind the face (hair, neck, clothes, ears), then its skin, soft shadows and colour."""
    if face.hair_end > 0.06:
        wide, end = face.hair_width, face.hair_end
        xs, ys = (
            (0, 0.7 * wide, wide, wide + 0.03, wide, 0.5 * wide, 0),
            (-0.4, -0.35, -0.1, 0.6 * end, end, end + 0.03),
        )
        canvas.shape(xs, (*ys, end), mix(face.hair, BLACK, 0.35), face.hair_alpha)
    canvas.shape((0, face.neck, face.neck, 0), (0.2, 0.2, 0.7, 0.8), mix(face.skin, face.dark, 0.4))
    canvas.shape((0, face.neck, 0.6, 0.7, 0), (face.chin + 0.1, face.chin + 0.03, 0.53, 0.8, 0.9), who.clothes)
    for side in (-1, 1):
        canvas.oval(side * face.temple, 0.08, 0.045, 0.085 + 0.02 * face.old, mix(face.skin, face.dark, 0.2))
        canvas.oval(side * (face.temple + 0.01), 0.08, 0.022, 0.055, mix(face.skin, face.dark, 0.42))
    xs = (0, 0.6 * face.temple, face.temple, face.temple, face.cheek, face.jaw, face.chin_width, 0)
    ys = (-face.top, -0.87 * face.top, -0.13, 0, 0.14, 0.68 * face.chin, 0.95 * face.chin, face.chin)
    canvas.shape(xs, ys, face.skin)
    canvas.glow(0, -0.2, 0.28, 0.16, face.pale, 0.35)
    canvas.glow(0, face.chin, 0.2, 0.05, face.dark, 0.2)
    for side in (-1, 1):
        canvas.glow(side * face.eye, -0.01, 0.13, 0.1, face.dark, 0.22 + 0.2 * face.old)
        canvas.glow(side * 0.21, 0.17, 0.13, 0.1, ROSE, 0.45 - 0.28 * face.grown + 0.08 * face.woman)
        canvas.glow(side * 0.25, 0.26, 0.09, 0.14, face.dark, 0.05 + 0.25 * face.old)


def draw_beard(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws a man's stubble or full beard."""
    alpha = face.man * np.interp(face.age, (15, 30), (0, 1)) * (0.85 if who.beard_luck > 0.6 else 0.28)
    lip, edge = face.mouth - 0.045, face.mouth_width + 0.02
    xs = (0, edge, edge + 0.04, 0.85 * face.jaw, 0.95 * face.cheek, face.cheek, face.jaw, face.chin_width + 0.01, 0)
    low = (0.06, 0.1, 0.68 * face.chin, 0.97 * face.chin, face.chin + 0.015)
    canvas.shape(xs, (lip, lip + 0.03, face.mouth + 0.03, 0.55 * face.chin, *low), face.hair, alpha)


def draw_nose_and_mouth(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws the nose, shaded away from the light, and the lips, parted by a broad smile."""
    tip, wing, mouth, width, lip = face.tip, face.wing, face.mouth, face.mouth_width + 0.015 * who.smile, face.lip
    shade = -1 if who.light > 0 else 1
    canvas.glow(shade * 0.045, 0.6 * tip, 0.045, 0.6 * tip, face.dark, 0.3)
    canvas.glow(-shade * 0.01, 0.75 * tip, 0.03, 0.5 * tip, face.pale, 0.5)
    ys = (tip - 0.022, tip + 0.004, tip + 0.018, tip + 0.004, tip - 0.022)
    canvas.stroke((-wing, -wing, 0, wing, wing), ys, 0.014, face.dark, 0.65)
    for side in (-1, 1):
        canvas.oval(side * 0.45 * wing, tip + 0.004, 0.3 * wing, 0.009, mix(face.dark, BLACK, 0.4), 0.75)
    corner, gap = mouth - 0.03 * who.smile, 0.022 * max(0, 2 * who.smile - 1)
    colour = mix(mix(face.skin, ROSE, 0.42), face.dark, 0.3 * face.man)
    colour = mix(colour, RED, (0.15 + 0.5 * who.lips_luck) * face.woman)
    ys = (mouth - 0.75 * lip, mouth - lip, corner, mouth + 0.8 * lip + gap, mouth + 1.15 * lip + gap)
    canvas.shape((0, 0.25 * width, width, 0.55 * width, 0), ys, colour)
    if gap:
        canvas.shape((0, 0.85 * width, 0), (mouth - 0.004, corner + 0.004, mouth + 2 * gap), WHITE)
    xs = width * np.array((-1.04, -0.4, 0, 0.4, 1.04))
    canvas.stroke(xs, (corner, mouth, mouth, mouth, corner), 0.012, mix(face.dark, BLACK, 0.25), 0.85)


def draw_eyes(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws eyes, lids, a woman's lashes, and brows."""
    x = np.linspace(-1, 1, 13)
    arch = face.eye_height * (1 - x * x)
    for side in (-1, 1):
        xs = side * face.eye + face.eye_width * x
        slant = 0.01 - 0.006 * side * x * (1 - face.old)
        upper, lower = slant - 1.1 * arch, slant + 0.75 * arch
        ball = np.stack([[*xs, *xs[::-1]], [*upper, *lower[::-1]]], axis=1)
        canvas.fill(ball, mix(WHITE, face.skin, 0.12))
        for share, colour in ((1, mix(who.eyes, BLACK, 0.45)), (0.85, who.eyes), (0.45, BLACK)):
            disc = CIRCLE * (share * face.iris) + (side * face.eye, -0.002)
            disc[:, 1] = np.clip(disc[:, 1], np.interp(disc[:, 0], xs, upper), np.interp(disc[:, 0], xs, lower))
            canvas.fill(disc, colour)
        spark = 0.22 * face.iris
        canvas.oval(side * face.eye + spark * np.sign(who.light), -spark, spark, spark, WHITE, 0.9)
        lid = mix(face.dark, BLACK, 0.3 + 0.6 * face.woman)
        canvas.stroke(xs[::3], upper[::3], 0.018 + 0.014 * face.woman, lid)
        canvas.stroke(xs[::3], lower[::3], 0.008, face.dark, 0.6)
        canvas.stroke(xs[::3], upper[::3] - 0.017, 0.009, face.dark, 0.35 + 0.4 * face.old)
    end = face.eye + face.eye_width
    canvas.stroke((end - 0.03, end, end + 0.022), (-0.008, 0.004, -0.018), 0.016, BLACK, 0.9 * face.woman, pair=True)
    ys = face.brow + np.array((0.008, -0.008, -0.012 - 0.008 * face.woman, 0.014))
    alpha = 0.35 + 0.55 * face.grown
    canvas.stroke((0.055, 0.13, 0.185, 0.24), ys, face.brow_width, face.brows, alpha, pair=True)


def draw_wrinkles(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws the lines of age: forehead, frown, crow's feet, bags, nasolabial folds, and beside the chin."""
    old, dark, corner, mouth, width = face.old, face.dark, face.eye + face.eye_width, face.mouth, face.mouth_width
    for y, half in ((-0.165, 0.17), (-0.215, 0.2), (-0.26, 0.17)):
        xs = half * np.array((-1, -0.5, 0, 0.5, 1))
        canvas.stroke(xs, (y + 0.01, y, y + 0.006, y, y + 0.01), 0.013, dark, 0.65 * old)
    canvas.stroke((0.022, 0.018), (-0.1, -0.045), 0.011, dark, 0.6 * old, pair=True)
    for rise in (-0.03, 0.0, 0.03):
        ys = (0.008 + rise / 3, 0.008 + 1.3 * rise)
        canvas.stroke((corner + 0.006, corner + 0.06), ys, 0.011, dark, 0.7 * old, pair=True)
    xs = (face.eye - 0.07, face.eye, face.eye + 0.065)
    canvas.stroke(xs, (0.04, 0.066 + 0.01 * old, 0.042), 0.016, dark, 0.1 * face.grown + 0.55 * old, pair=True)
    xs = (face.wing + 0.012, width + 0.01, width + 0.035)
    canvas.stroke(xs, (face.tip - 0.015, mouth - 0.06, mouth + 0.02), 0.018, dark, 0.6 * old, pair=True)
    canvas.stroke((width + 0.005, width + 0.02), (mouth + 0.02, mouth + 0.09), 0.014, dark, 0.6 * old, pair=True)


def draw_hair(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws the hair in front of the head, from the hairline up, with lighter and darker strands."""
    wide, top, side_end = face.hair_width, face.hair_top, min(face.hair_end, 0.1)
    fringe, open_brow = (BOYS_FRINGE, CUT_SHORT) if face.male else (FRINGE, PARTED)
    share = np.clip(np.interp(face.age, (8, 30, 65), (1.2, 0.5, 0.1)) + 0.6 * (who.hair_luck - 0.5), 0, 1)
    ys = share * fringe + (1 - share) * open_brow + face.bald * RECEDED
    line = curve(face.temple * HAIRLINE, ys - 0.09 * (1 - face.grown) * (ys < 0))
    heights = (side_end, -0.14, -0.9 * top, -top, -0.9 * top, -0.14, side_end)
    rim = curve(wide * np.array((-1, -1, -0.62, 0, 0.62, 1, 1)), heights)
    line, rim = line * (who.part, 1), rim * (who.part, 1)
    canvas.fill(np.concatenate([line, rim[::-1]]), face.hair, face.hair_alpha)
    for step in range(10):
        root, edge = line[(2 * step + 1) * len(line) // 20], rim[(2 * step + 1) * len(rim) // 20]
        strand = np.stack([0.95 * root + 0.05 * edge, 0.55 * root + 0.4 * edge - (0, 0.02), 0.1 * root + 0.9 * edge])
        colour = mix(face.hair, WHITE, 0.22) if step % 2 else mix(face.hair, BLACK, 0.35)
        canvas.stroke(*strand.T, 0.016, colour, 0.35 * face.hair_alpha)


def draw_glasses(canvas: Canvas, who: SimpleNamespace, face: SimpleNamespace) -> None:
    """Draws glasses, oftener on older people."""
    if who.glasses_luck < np.interp(face.age, (4, 40, 70), (0, 0.15, 0.45)):
        for side in (-1, 1):
            rim = CIRCLE * (0.112, 0.088) + (side * face.eye, 0.015)
            rim = np.concatenate([rim, rim[:2]]) @ canvas.turn + canvas.origin
            canvas.draw.line(rim.ravel().tolist(), fill=FRAME, width=7, joint="curve")
        canvas.stroke((face.eye + 0.11, face.temple + 0.01), (0, -0.01), 0.02, FRAME, pair=True)
        canvas.stroke((face.eye - 0.112, 0, 0.112 - face.eye), (0.01, -0.004, 0.01), 0.018, FRAME)


def draw_face(who: SimpleNamespace, age: int, gender: int) -> Image.Image:
    """Returns a picture (RGB, 128x128) of `who` (of `draw_person`) at `age` (years, 1 to 90) as `gender` (0 or 1)."""
    face = look(who, age, gender)
    canvas = Canvas(who.background, 0.45 - 0.03 * face.grown, who.tilt)
    for draw in (draw_head, draw_beard, draw_nose_and_mouth, draw_eyes, draw_wrinkles, draw_hair, draw_glasses):
        draw(canvas, who, face)
    picture = np.asarray(canvas.image.reduce(CANVAS // SIZE), np.float32)
    light = 1 + 0.16 * who.light * np.linspace(-1, 1, SIZE, dtype=np.float32)[:, None]  # [width, 1]
    return Image.fromarray(np.clip(picture * light, 0, 255).astype(np.uint8))


DRAWN_NAME = re.compile(r"\d{1,3}_[01]_[0-4]_2017\d{8}00000\.jpg")  # what `draw_dataset` calls its files


def draw_dataset(folder: Path | str, number: int = 1000, seed: int = 2017) -> None:
    """Draws `number` faces into the new folder `folder`, as JPEG files under UTKFace's names, in a few seconds.

    Every age bin and both genders get the same number, to within one. The same `seed` gives the same files. The folder
    gets its name only when it is complete. Raises OSError where `folder` has anything in it, and leaves it as it is.
    """
    folder = Path(folder)
    if folder.exists():
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    youngest, oldest = (YOUNGEST, *(bound + 1 for bound in AGE_BOUNDS)), (*AGE_BOUNDS, OLDEST)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        unfinished = Path(temporary, folder.name)
        unfinished.mkdir()
        for index in range(number):
            rng = np.random.default_rng([seed, index])
            turn, age_bin = divmod(index, len(youngest))
            gender = (turn + age_bin) % 2  # so that any number of faces is balanced
            age = rng.integers(youngest[age_bin], oldest[age_bin], endpoint=True)
            who = draw_person(rng)
            taken = datetime(2017, 1, 1) + timedelta(minutes=index)
            name = f"{age}_{gender}_{who.race}_{taken:%Y%m%d%H%M%S}000.jpg"
            draw_face(who, age, gender).save(unfinished / name, quality=92)
        unfinished.rename(folder)
