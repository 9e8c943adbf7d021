"""Draw demo/method.png, the four networks and their losses: `python -m tools.draw_method`.

Sizes are the defaults; the face is one of demo/faces, and the blurred one is not an actual reconstruction.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image, ImageFilter

from support.labels import AgeBins
from support.terminal import PROJECT

BLUE, ORANGE, GREEN, VIOLET, RED = "#2f6db3", "#d9822b", "#3b8f5a", "#7a57a8", "#b5364a"  # E, G, D_z, D_img, losses
INK, GREY = "#222222", "#6b6b6b"
FACE, AGE = "09_1F35.png", 35  # years
WIDTH, HEIGHT = 16.0, 9.0  # of the drawing, in its own units
MIDDLE = 5.0  # height of the autoencoder's axis


class Drawing:
    """Boxes, arrows and text on one axes, in units of WIDTH x HEIGHT."""

    def __init__(self):
        self.figure = Figure(figsize=(WIDTH, HEIGHT), dpi=100)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.set_axis_off()

    def text(self, x, y, text, size=12.0, colour=INK, **how):
        self.axes.text(x, y, text, fontsize=size, color=colour, **{"ha": "center", "va": "center", **how})

    def line(self, *points, head=False, colour=GREY, **style):
        """Draw a line through points (x, y), with an arrow head at the last."""
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=colour, lw=1.8, solid_joinstyle="round", zorder=1, **style)
        if head:
            style = {"arrowstyle": "-|>", "mutation_scale": 16, "lw": 0, "color": colour, "shrinkA": 0, "shrinkB": 0}
            self.axes.add_patch(FancyArrowPatch(points[-2], points[-1], **style))

    def box(self, x, y, width, height, colour, alpha=0.14):
        shape = "round,pad=0,rounding_size=0.15"
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, shape, fc=colour, ec="none", alpha=alpha, zorder=2))
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, shape, fc="none", ec=colour, lw=1.8, zorder=3))

    def layers(self, x, y, heights, widths, labels, colour):
        """Draw layers side by side from x on, centred at height y, with labels below; return their right end."""
        for height, width, label in zip(heights, widths, labels, strict=True):
            self.axes.add_patch(
                Rectangle((x, y - height / 2), width, height, fc=colour, ec="white", lw=1, alpha=0.85, zorder=3)
            )
            self.text(x + width / 2, y - height / 2 - 0.26, label, 8, GREY, linespacing=1.1)
            x += width + 0.14
        return x - 0.14

    def cells(self, x, y, values, size, height=0.3):
        """Draw a vector in [-1, 1] as a row of cells from x on, centred at height y; dark is +1."""
        for value in values:
            shade = f"{0.93 - 0.36 * (value + 1):.3f}"
            self.axes.add_patch(Rectangle((x, y - height / 2), size, height, fc=shade, ec=GREY, lw=0.8, zorder=3))
            x += size

    def image(self, x, y, side, image):
        self.axes.imshow(image, extent=(x, x + side, y, y + side), zorder=3, interpolation="bilinear", aspect="auto")
        self.axes.add_patch(Rectangle((x, y), side, side, fc="none", ec=INK, lw=1.2, zorder=4))

    def loss(self, x, y, text, width, colour=RED, size=9.5):
        """Draw a framed name of a loss, with its left end at x."""
        shape = "round,pad=0,rounding_size=0.17"
        frame = FancyBboxPatch((x, y - 0.17), width, 0.34, shape, fc="white", ec=colour, lw=1.5, zorder=5)
        self.axes.add_patch(frame)
        self.text(x + width / 2, y, text, size, colour, zorder=6, family="monospace")


def draw_autoencoder(d: Drawing, random: np.random.Generator) -> None:
    """Draw E and G, left to right."""
    face = Image.open(PROJECT / "demo" / "faces" / FACE).convert("RGB")
    d.image(0.45, MIDDLE - 0.95, 1.9, np.asarray(face))
    d.text(1.4, MIDDLE - 1.2, "face  x", 13)
    d.text(1.4, MIDDLE - 1.5, "128 × 128 × 3", 9, GREY)
    d.line((2.4, MIDDLE), (2.85, MIDDLE), head=True)
    labels = ["64\n64", "32\n128", "16\n256", "8\n512", "4\n1024"]
    end = d.layers(2.9, MIDDLE, (2.2, 1.7, 1.25, 0.85, 0.5), (0.2, 0.28, 0.36, 0.46, 0.6), labels, BLUE)
    d.text((3.6 + end) / 2, MIDDLE - 1.5, "pixels a side\nchannels", 8, GREY, style="italic")
    d.text((2.9 + end) / 2, MIDDLE + 1.4, "encoder  E", 14, BLUE, weight="bold")
    d.line((end + 0.06, MIDDLE), (5.95, MIDDLE), head=True)
    d.cells(6.0, MIDDLE, random.uniform(-1, 1, 8), 0.17)
    d.text(6.68, MIDDLE + 0.38, "z", 15, style="italic")
    d.text(7.2, MIDDLE + 0.36, "50", 9, GREY)
    d.line((7.4, MIDDLE), (8.35, MIDDLE), head=True)
    labels = ["4\n1024", "8\n512", "16\n256", "32\n128", "64\n64", "128\n32", "128\n16"]
    heights, widths = (0.5, 0.8, 1.1, 1.45, 1.8, 2.2, 2.2), (0.6, 0.46, 0.38, 0.3, 0.25, 0.2, 0.15)
    end = d.layers(8.4, MIDDLE, heights, widths, labels, ORANGE)
    d.text((8.4 + end) / 2, MIDDLE + 1.4, "generator  G", 14, ORANGE, weight="bold")
    d.line((end + 0.06, MIDDLE), (12.15, MIDDLE), head=True)
    d.image(12.2, MIDDLE - 0.95, 1.9, np.asarray(face.filter(ImageFilter.GaussianBlur(2.2))))
    d.text(13.15, MIDDLE - 1.2, "$\\hat{x}$ = G(E(x), age, gender)", 12)


def draw_labels(d: Drawing) -> None:
    age, gender = -np.ones(10), np.array([-1, 1])
    age[AgeBins().index([AGE])[0]] = 1
    d.cells(6.65, 2.85, age, 0.17)
    d.cells(8.55, 2.85, gender, 0.17)
    d.text(7.5, 2.5, "age, 10 bins", 10)
    d.text(8.72, 2.5, "gender", 10)
    d.text(7.77, 2.2, "one-hot in {−1, +1}", 9, GREY)
    d.line((6.65, 3.1), (6.65, 3.2), (8.89, 3.2), (8.89, 3.1))
    d.line((7.77, 3.2), (7.77, MIDDLE - 0.03), head=True)
    d.text(7.87, 3.85, "tiled\n×5, ×25", 9, GREY, ha="left")


def draw_discriminators(d: Drawing, random: np.random.Generator) -> None:
    d.box(8.6, 7.3, 2.9, 1.2, GREEN)
    d.text(10.05, 8.1, "discriminator  $D_z$", 14, GREEN, weight="bold")
    d.text(10.05, 7.66, "fc 64, 32, 16 → 1", 10, GREY)
    d.cells(4.3, 8.2, random.uniform(-1, 1, 8), 0.17)
    d.text(4.15, 8.2, "prior  $z^*$ ~ U(−1, 1)", 13, ha="right")
    d.line((5.72, 8.2), (8.55, 8.2), head=True)
    d.line((6.68, MIDDLE + 0.6), (6.68, 7.65), (8.55, 7.65), head=True)
    d.line((11.55, 7.9), (12.05, 7.9), head=True)
    d.text(12.15, 8.3, "prior or encoded?", 12, ha="left")
    d.loss(12.15, 7.85, "D_z_loss_prior + D_z_loss_z", 2.75, GREEN)
    d.loss(12.15, 7.42, "E_z_loss", 1.05)

    d.box(9.4, 0.95, 3.0, 1.3, VIOLET)
    d.text(10.9, 1.88, "discriminator  $D_{img}$", 14, VIOLET, weight="bold")
    d.text(10.9, 1.38, "conv 16, 32, 64, 128\nfc 1024 → 1", 10, GREY)
    d.line((13.15, MIDDLE - 1.45), (13.15, 2.85), (11.4, 2.85), (11.4, 2.3), head=True)
    d.line((1.4, MIDDLE - 1.75), (1.4, 1.3), (9.35, 1.3), head=True)
    d.line((8.97, 2.85), (10.2, 2.85), (10.2, 2.3), head=True)
    d.line((12.45, 1.6), (12.95, 1.6), head=True)
    d.text(13.05, 2.05, "real or generated?", 12, ha="left")
    d.loss(13.05, 1.55, "D_img_loss_input + D_img_loss_G", 2.75, VIOLET, 8)
    d.loss(13.05, 1.12, "G_img_loss", 1.25)


def draw_objectives(d: Drawing) -> None:
    """Draw the losses on images, and the objectives at the bottom."""
    d.line((1.4, MIDDLE + 1.0), (1.4, 6.9), (13.15, 6.9), (13.15, MIDDLE + 1.0), colour=RED, linestyle=(0, (4, 3)))
    d.loss(2.9, 6.9, "EG_loss = mean |x − x̂|", 2.35)
    d.line((14.15, MIDDLE), (14.6, MIDDLE), colour=RED, linestyle=(0, (4, 3)))
    d.loss(14.6, MIDDLE, "tv_loss", 0.95)
    objective = "EG_loss + $w_0$ G_img_loss + $w_1$ E_z_loss + $w_2$ tv_loss"
    d.text(0.45, 0.42, f"E and G together minimise  {objective}", 11.5, RED, ha="left")
    d.text(9.1, 0.42, "$D_z$ minimises the green, ", 11.5, GREEN, ha="left")
    d.text(11.2, 0.42, "$D_{img}$ the violet losses", 11.5, VIOLET, ha="left")


def draw(path: Path) -> None:
    random, drawing = np.random.default_rng(29), Drawing()
    draw_autoencoder(drawing, random)
    draw_labels(drawing)
    draw_discriminators(drawing, random)
    draw_objectives(drawing)
    drawing.figure.savefig(path)


if __name__ == "__main__":
    draw(PROJECT / "demo" / "method.png")
