"""Where in a photo MTCNN (Zhang et al. 2016, arXiv 1604.02878) sees the five points of a face: three small networks."""

from functools import cache

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from support.errors import InputError
from support.terminal import python

try:
    from mtcnn.stages import StageONet, StagePNet, StageRNet
    from mtcnn.utils.bboxes import generate_bounding_box, resize_to_square, upscale_bboxes
except ImportError as error:
    raise InputError(f"--align needs mtcnn: {python('-m', 'pip', 'install', 'mtcnn')} ({error})") from error

# Photos are searched at no more pixels a side than this, which bounds time and memory: the smallest face that is found,
# of 24 pixels there, is one of 48 in a photo of 4,000.
WORKING_SIDE = 2000
SMALLEST_FACE = 24
PROPOSALS = 300  # at most, of one size and of all: gravel gives thousands, and the second network takes its time
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
VIEW_SIDE = 48  # pixels a side that the last network sees
CPU = "CPU:0"  # a GPU waits longer for such small networks than it computes


def find_points(photo: Image.Image, quarters: int) -> np.ndarray:
    """The points of all that may be a face in a photo turned left by quarters, float [N, 5, 2] in the photo's pixels.

    Eyes, nose and corners of the mouth, left before right where the face is level.
    """
    pnet, rnet, onet = _networks()
    reduced = max(1, max(photo.size) / WORKING_SIDE)
    working = _resize(photo, 1 / reduced)
    if quarters:
        working = working.transpose(TURNS[quarters - 1])
    with tf.device(CPU):
        boxes, scale = [np.empty((0, 6))], 12 / SMALLEST_FACE
        # the first network sees faces of 12 pixels, so the photo gets smaller and smaller
        while scale * min(working.size) >= 12:
            found = generate_bounding_box(*pnet(_normalize(_resize(working, scale))), 0.6)
            boxes.append(upscale_bboxes(found[_strongest(found, 0.5)], np.array([scale])))
            scale *= 0.709
        boxes = np.concatenate(boxes)
        boxes = resize_to_square(boxes[_strongest(boxes, 0.7)])
        pixels = _normalize(working)
        for stage in (rnet, onet):
            if len(boxes):  # the stages take no empty list
                boxes = stage(images_normalized=pixels, bboxes_batch=boxes, threshold_onet=0.7)
    points = boxes[:, 6:].reshape(-1, 2, 5).swapaxes(1, 2) if len(boxes) else np.empty((0, 5, 2))
    back = np.linalg.matrix_power([(0, 1), (-1, 0)], quarters)
    return (points - np.divide(working.size, 2)) @ back * reduced + np.divide(photo.size, 2)


def look(view: np.ndarray) -> tuple[np.ndarray, float]:
    """The points, float [5, 2] in sides of a view, uint8 [48, 48, 3], and how sure it is to be a face, from 0 to 1.

    The last network sees the view and its mirror image: the points are the means, and the lesser certainty counts.
    """
    with tf.device(CPU):
        _, points, scores = _networks()[2].model(np.concatenate([_normalize(view), _normalize(view[:, ::-1])]))
    seen, mirrored = points.numpy().reshape(2, 2, 5).swapaxes(1, 2)
    unmirrored = mirrored[[1, 0, 2, 4, 3]] * (-1, 1) + (1, 0)
    return (seen + unmirrored) / 2, float(scores[:, 1].numpy().min())


def _resize(image: Image.Image, scale: float) -> Image.Image:
    """An image made smaller by a factor of at most 1, without aliasing."""
    size = [max(1, round(scale * side)) for side in image.size]
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3)


def _normalize(image) -> np.ndarray:
    """An image [H, W, 3] as the networks take it, float32 [1, H, W, 3] from -1 to 1."""
    return (np.asarray(image, np.float32)[np.newaxis] - 127.5) / 128


def _strongest(boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Which of some boxes, float [N, 6], are not overlapped by stronger ones; the package's own takes N * N numbers."""
    return tf.image.non_max_suppression(boxes[:, 1:5], boxes[:, 5], PROPOSALS, overlap).numpy()


@cache
def _networks():
    """The first network as a function traced once for images of every size, the others with the boxes' part in them."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # or the layers would take the precision of the run
    try:
        with tf.device(CPU):
            pnet, rnet, onet = StagePNet(), StageRNet(), StageONet()
    finally:
        keras.config.set_dtype_policy(policy)
    return tf.function(pnet.model, input_signature=[tf.TensorSpec([1, None, None, 3])]), rnet, onet
