"""A z-buffer, compiled by numba: which triangle is seen at each pixel, and where on it."""

from __future__ import annotations

import numba
import numpy as np

NOTHING = -1


@numba.njit(cache=True)
def rasterise(points: np.ndarray, depth: np.ndarray, faces: np.ndarray, size: int):
    """The nearest front-facing triangle at each pixel's centre.

    points [V, 2] float32 in pixels (x right, y down), depth [V] float32 growing away from the camera, faces [F, 3].
    Returns seen [size, size] int32 (NOTHING where no triangle is) and weights [size, size, 2] float32: the shares of
    the triangle's first and second corner. Shares are linear on the screen: triangles are a few pixels wide.
    """
    seen = np.full((size, size), NOTHING, np.int32)
    weights = np.zeros((size, size, 2), np.float32)
    nearest = np.full((size, size), np.float32(np.inf))
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0:  # y goes down: a front face runs clockwise in its numbers
            continue
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), size - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), size - 1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                first = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                second = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                third = 1 - first - second
                if first < 0 or second < 0 or third < 0:
                    continue
                z = first * depth[a] + second * depth[b] + third * depth[c]
                if z < nearest[row, column]:
                    nearest[row, column] = z
                    seen[row, column] = face
                    weights[row, column, 0] = first
                    weights[row, column, 1] = second
    return seen, weights


@numba.njit(cache=True)
def interpolate(values: np.ndarray, faces: np.ndarray, seen: np.ndarray, weights: np.ndarray):
    """`values` [V, K] at the pixels `seen` [N] (triangles) with `weights` [N, 2]: [N, K] float32."""
    out = np.empty((seen.shape[0], values.shape[1]), np.float32)
    for pixel in range(seen.shape[0]):
        a, b, c = faces[seen[pixel], 0], faces[seen[pixel], 1], faces[seen[pixel], 2]
        first, second = weights[pixel, 0], weights[pixel, 1]
        for k in range(values.shape[1]):
            out[pixel, k] = first * values[a, k] + second * values[b, k] + (1 - first - second) * values[c, k]
    return out


@numba.njit(cache=True)
def vertex_normals(vertices: np.ndarray, faces: np.ndarray):
    """[V, 3] unit normals: the mean of the touching triangles' normals, by area."""
    normals = np.zeros_like(vertices)
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        u, v = vertices[b] - vertices[a], vertices[c] - vertices[a]
        n = np.array((u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]))
        for corner in (a, b, c):
            for k in range(3):
                normals[corner, k] += n[k]
    for row in range(normals.shape[0]):
        length = np.sqrt((normals[row] ** 2).sum())
        if length > 0:
            normals[row] /= length
    return normals


@numba.njit(cache=True)
def paint_spots(colours: np.ndarray, places: np.ndarray, centres: np.ndarray, radii: np.ndarray, tints: np.ndarray):
    """Multiply `colours` [N, 3] in place by `tints` [S, 3] where `places` [N, 3] lie within `radii` [S] of `centres`
    [S, 3], with a soft rim over the outer third."""
    for pixel in range(places.shape[0]):
        for spot in range(centres.shape[0]):
            dy = abs(places[pixel, 1] - centres[spot, 1])
            if dy >= radii[spot]:
                continue
            dx = places[pixel, 0] - centres[spot, 0]
            dz = places[pixel, 2] - centres[spot, 2]
            away = np.sqrt(dx * dx + dy * dy + dz * dz) / radii[spot]
            if away >= 1:
                continue
            share = min(1.0, (1 - away) * 3)
            for k in range(3):
                colours[pixel, k] *= 1 - share * (1 - tints[spot, k])
