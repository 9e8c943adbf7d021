"""How well faces are kept, and how far the age label moves them; open it to measure something else."""

import numpy as np

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # pixels: a Gaussian window of 11 x 11
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for pixels in [0, 1]
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R 601


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """The structural similarity of two pictures, float [H, W, C] in [0, 1]; 1 where they are equal.

    The mean over channels and over all places of the window within them (Wang, Bovik, Sheikh and Simoncelli 2004).
    """
    from scipy.ndimage import gaussian_filter

    def blur(x):
        return gaussian_filter(x, SSIM_SIGMA, radius=SSIM_RADIUS, axes=(0, 1))

    a, b = first.astype(np.float64), second.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    likeness *= (2 * covariance + SSIM_C2) / (variances + SSIM_C2)
    margin = min(SSIM_RADIUS, (min(a.shape[:2]) - 1) // 2)
    return float(likeness[margin:-margin, margin:-margin].mean())


def sharpness(image: np.ndarray) -> float:
    """The variance of the Laplacian of a picture, float [H, W, C], made grey, in squared units of its own."""
    from scipy.ndimage import laplace

    return float(laplace(image @ GREY if image.shape[-1] == 3 else image[..., 0]).var())
