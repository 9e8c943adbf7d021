"""Which losses E and G minimise beside the reconstruction, and how they are weighed; open it to add one."""

from collections.abc import Sequence

# Their names, in the order of --loss_weights. The first three are the paper's; the two others are not even computed
# where they weigh nothing.
WEIGHTED_LOSSES = ("G_img_loss", "E_z_loss", "tv_loss", "E_label_loss", "G_feature_loss")
OF_THE_PAPER = 3
COUNTS = (OF_THE_PAPER, len(WEIGHTED_LOSSES))  # how many weights may be given
PRESETS = {
    "released": (1e-4, 0.0, 0.0),
    "2017": (1e-4, 1e-4, 1e-4),
    "paper": (0.01, 0.01, 0.1),  # section 4.1 has 1 : 10 beside 100: divided by 100
    "aging": (3e-4, 1e-4, 1e-4, 2e-2, 0.3),  # the README has what was measured
}


def by_name(weights: Sequence[float]) -> dict[str, float]:
    """Returns weights by the names of their losses: those of the paper's three, and of the others what is not 0."""
    named = zip(WEIGHTED_LOSSES, weights, strict=False)
    return {name: weight for name, weight in named if weight or name in WEIGHTED_LOSSES[:OF_THE_PAPER]}
