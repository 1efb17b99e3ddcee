"""Puts a restored crop back into its photograph."""

from __future__ import annotations

import cv2
import numpy as np

from bench.photographs.face_crop import FaceCrop

#: Luma of RGB (ITU-R BT.601, as JPEG has it).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
#: Standard deviation, in sides of the crop, from which on light and colour are the photograph's own.
KEPT_LIGHT = 0.08
#: Of the filter that lets colour follow restored edges: reach in sides of the crop, and the standard deviation of
#: lightness, in levels, from which on something is an edge.
COLOUR_REACH, EDGE = 3 / 128, 8.0


def grey_of(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with the luma of a picture (H, W, 3) uint8 in all channels."""
    luma = np.clip(np.rint(pixels.astype(np.float32) @ LUMA), 0, 255).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=2)


def change(crop: np.ndarray, restored: np.ndarray, grey: bool) -> np.ndarray:
    """What a restoration changed, without what it did to light and colour at large.

    Degradations keep broad light and shade, so that a difference there is the network's drift, which would show as a
    patch of another tone.

    Args:
        crop: (N, N, 3) uint8, what was restored.
        restored: (N, N, 3) float32 in [0, 255].
        grey: Whether the network's colours mean nothing. Lightness is then restored and colour stays the photograph's,
            cleaned of JPEG's noise along the restored edges.

    Returns:
        (N, N, 3) float32.
    """
    before = crop.astype(np.float32)
    luma_before, luma = before @ LUMA, restored @ LUMA
    difference = (luma - luma_before)[..., None] if grey else restored - before
    broad = cv2.GaussianBlur(difference, (0, 0), KEPT_LIGHT * len(crop), borderType=cv2.BORDER_REFLECT)
    changed = difference - broad.reshape(difference.shape)
    if not grey:
        return changed
    colour = before - luma_before[..., None]
    cleaned = np.stack([_following(luma, colour[..., channel]) for channel in range(3)], axis=-1)
    found: np.ndarray = changed + cleaned - colour
    return found


def _following(guide: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Guided filter (He et al., ECCV 2010): smooth where `guide` is, with its edges; all (N, N) float32."""
    side = 2 * max(1, round(COLOUR_REACH * len(guide))) + 1

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT)

    guide_mean, picture_mean = mean(guide), mean(picture)
    variance = mean(guide * guide) - guide_mean * guide_mean
    slope = (mean(guide * picture) - guide_mean * picture_mean) / (variance + EDGE * EDGE)
    return mean(slope) * guide + mean(picture_mean - slope * guide_mean)


def put_back(canvas: np.ndarray, photograph: np.ndarray, crop: FaceCrop, changed: np.ndarray, mask: np.ndarray) -> None:
    """Adds what was changed to the photograph, within a mask.

    Detail that is finer than the crop's pixels stays as it was in the photograph.

    Args:
        canvas: (H, W, 3) uint8, written to: the photograph, or what became of its background. Where the mask is 0 no
            pixel is touched.
        photograph: (H, W, 3) uint8, as it was before any face was restored.
        crop: Where the face lies.
        changed: From `change`.
        mask: From `face_mask`.
    """
    window = crop.window
    face = photograph[window].astype(np.float32) + crop.back(changed)
    weight = mask[..., None]
    mixed = canvas[window] * (1 - weight) + np.clip(face, 0, 255) * weight
    canvas[window] = np.where(weight > 0, np.clip(np.rint(mixed), 0, 255), canvas[window]).astype(np.uint8)
