"""Warps a reference face to a target face from matching points.

Source: ReFine (WACV 2025), Sec. 3.1 "Warping": correspondences between x_d and y from landmarks,
warped in image space. Kind, border anchors and validity mask are ours (the supplement is not public).

Coordinates are (x, y) in pixels; the centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

WarpKind = Literal["tps", "piecewise_affine", "similarity"]


def warp_reference(
    reference: Tensor,
    reference_points: Tensor,
    target_points: Tensor,
    kind: WarpKind = "tps",
) -> tuple[Tensor, Tensor]:
    """Warps references so that their points fall on the target's points.

    Every output pixel is looked up in the reference (backward mapping, bilinear). Eight anchors on
    the border (corners and edge midpoints), moved by the least-squares similarity of the points,
    join the points, so that the surroundings follow the head.

    Args:
        reference: Pictures (B, 3, H, W), any range.
        reference_points: Points in the references, (B, K, 2), pixels, K >= 2.
        target_points: The same points in the targets, (B, K, 2), pixels.
        kind: "tps" (thin-plate spline), "piecewise_affine" (Delaunay triangles of the target's
            points) or "similarity" (rotation, scale and shift only).

    Returns:
        Warped pictures (B, 3, H, W), zero where invalid, and the validity mask (B, 1, H, W): 1 where
        the look-up falls inside the reference, else 0.

    Raises:
        ValueError: Shapes do not fit, points are not finite, or `kind` is unknown.
    """
    if reference_points.shape != target_points.shape or target_points.ndim != 3 or target_points.shape[-1] != 2:
        raise ValueError(f"points must be two (B, K, 2), got {reference_points.shape} and {target_points.shape}")
    if len(reference) != len(target_points) or target_points.shape[1] < 2:
        raise ValueError(f"{len(reference)} pictures and points {tuple(target_points.shape)} do not fit")
    source = reference_points.detach().to(reference.device, torch.float64)
    target = target_points.detach().to(reference.device, torch.float64)
    if not bool(torch.isfinite(source).all() and torch.isfinite(target).all()):
        raise ValueError("points must be finite")

    height, width = reference.shape[-2:]
    similarity = fit_similarity(target, source)
    pixels = _pixel_grid(height, width, reference.device)
    if kind == "similarity":
        look_up = apply_similarity(similarity, pixels.expand(len(target), -1, -1))
    else:
        anchors = border_anchors(height, width, reference.device).expand(len(target), -1, -1)
        target_all = torch.cat([target, anchors], dim=1)
        source_all = torch.cat([source, apply_similarity(similarity, anchors)], dim=1)
        if kind == "tps":
            look_up = thin_plate_map(target_all, source_all, pixels)
        elif kind == "piecewise_affine":
            look_up = piecewise_affine_map(target_all, source_all, pixels)
        else:
            raise ValueError(f"unknown warp {kind!r}; known: tps, piecewise_affine, similarity")
    return _sample(reference, look_up.view(len(target), height, width, 2))


def fit_similarity(origin: Tensor, destination: Tensor) -> Tensor:
    """Least-squares similarity from `origin` to `destination`, both (B, K, 2), as (B, 2, 3).

    Minimises sum |a (p - p0) + t - q|^2 over rotation-and-scale a and shift t (Umeyama 1991, in
    closed form for the plane, without reflection).
    """
    origin_centre = origin.mean(dim=1, keepdim=True)
    destination_centre = destination.mean(dim=1, keepdim=True)
    p, q = origin - origin_centre, destination - destination_centre
    spread = p.square().sum(dim=(1, 2)).clamp_min(1e-12)
    cosine = (p * q).sum(dim=(1, 2)) / spread
    sine = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(dim=1) / spread
    turn = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], dim=1)
    shift = destination_centre.transpose(1, 2) - turn @ origin_centre.transpose(1, 2)
    return torch.cat([turn, shift], dim=2)


def apply_similarity(matrix: Tensor, points: Tensor) -> Tensor:
    """Applies matrices (B, 2, 3) to points (B, N, 2)."""
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


def border_anchors(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Corners and edge midpoints of a picture, (1, 8, 2)."""
    right, bottom = width - 1.0, height - 1.0
    points = [(0, 0), (right / 2, 0), (right, 0), (0, bottom / 2), (right, bottom / 2)]
    points += [(0, bottom), (right / 2, bottom), (right, bottom)]
    return torch.tensor([points], dtype=torch.float64, device=device)


def thin_plate_map(origin: Tensor, destination: Tensor, points: Tensor, smoothing: float = 1e-5) -> Tensor:
    """Thin-plate spline through `origin` -> `destination`, evaluated at `points`.

    f(p) = A [1, p] + sum_i w_i U(|p - o_i|), U(r) = r^2 log r^2 (Bookstein 1989). Coordinates are
    scaled by the extent of `origin` before solving, so that `smoothing` does not depend on the size.

    Args:
        origin: Control points, (B, N, 2), float64.
        destination: Where they go, (B, N, 2), float64.
        points: Where to evaluate, (1, M, 2), float64.
        smoothing: Added to the diagonal; keeps coinciding points solvable.

    Returns:
        f(points), (B, M, 2).
    """
    count = origin.shape[1]
    extent = (origin.amax(dim=1) - origin.amin(dim=1)).amax(dim=1)[:, None, None].clamp_min(1e-6)
    centre = origin.mean(dim=1, keepdim=True)
    control = (origin - centre) / extent
    eye = torch.eye(count, dtype=origin.dtype, device=origin.device)
    affine = torch.cat([torch.ones_like(control[..., :1]), control], dim=2)
    top = torch.cat([_thin_plate_kernel(control, control) + smoothing * eye, affine], dim=2)
    bottom = torch.cat([affine.transpose(1, 2), affine.new_zeros(len(control), 3, 3)], dim=2)
    goal = torch.cat([destination, destination.new_zeros(len(destination), 3, 2)], dim=1)
    coefficients = torch.linalg.solve(torch.cat([top, bottom], dim=1), goal)
    # The system is small and solved in double precision; the many evaluations need no more than single.
    where, control, coefficients = ((points - centre) / extent).float(), control.float(), coefficients.float()
    bending = _thin_plate_kernel(where, control) @ coefficients[:, :count]
    mapped = bending + coefficients[:, count : count + 1] + where @ coefficients[:, count + 1 :]
    return mapped.to(points.dtype)


def _thin_plate_kernel(a: Tensor, b: Tensor) -> Tensor:
    """U(|a - b|) of (B, M, 2) and (B, N, 2), (B, M, N)."""
    across = (a[..., 0, None] - b[:, None, :, 0]).square()
    squared = torch.addcmul(across, a[..., 1, None] - b[:, None, :, 1], a[..., 1, None] - b[:, None, :, 1])
    return squared * squared.clamp_min(1e-30).log()


def piecewise_affine_map(origin: Tensor, destination: Tensor, points: Tensor) -> Tensor:
    """Affine map in each Delaunay triangle of `origin`, evaluated at `points`.

    Args:
        origin: Control points, (B, N, 2), float64.
        destination: Where they go, (B, N, 2), float64.
        points: Where to evaluate, (1, M, 2), float64.

    Returns:
        Mapped points, (B, M, 2); minus infinity outside every triangle.
    """
    import numpy as np
    from scipy.spatial import Delaunay

    grid = points[0].cpu().numpy()
    mapped = []
    for control, goal in zip(origin.cpu().numpy(), destination.cpu().numpy(), strict=True):
        triangles = Delaunay(control)
        # A tolerance keeps the picture's own border inside the hull.
        found = triangles.find_simplex(grid, tol=1e-9)
        transform = triangles.transform[found]
        partial = np.einsum("mij,mj->mi", transform[:, :2], grid - transform[:, 2])
        weights = np.concatenate([partial, 1 - partial.sum(axis=1, keepdims=True)], axis=1)
        result = np.einsum("mi,mij->mj", weights, goal[triangles.simplices[found]])
        result[found < 0] = -np.inf
        mapped.append(torch.from_numpy(result))
    return torch.stack(mapped).to(origin.device)


def _pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of all pixels in row order, (1, H * W, 2)."""
    rows = torch.arange(height, dtype=torch.float64, device=device)
    columns = torch.arange(width, dtype=torch.float64, device=device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def _sample(picture: Tensor, look_up: Tensor) -> tuple[Tensor, Tensor]:
    """Reads `picture` (B, C, H, W) at pixel positions (B, H, W, 2); also returns where that is inside."""
    height, width = picture.shape[-2:]
    last = look_up.new_tensor([width - 1, height - 1])
    tolerance = 1e-4
    inside = ((look_up >= -tolerance) & (look_up <= last + tolerance)).all(dim=-1)[:, None]
    grid = (2 * look_up / last - 1).clamp(-2, 2).to(picture.dtype)
    sampled = F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=True)
    validity = inside.to(picture.dtype)
    return sampled * validity, validity
