"""SD1.5's and SDXL's forms with one residual block a level where they have two: every level and every kind of layer is
there, in two thirds of the operations."""

from __future__ import annotations

from omniportrait.lab.testbed import small

SD15 = small.SD15 | dict(
    num_res_blocks=[1] * 4, transformer_depth=[1] * 3 + [0], transformer_depth_output=[1] * 6 + [0] * 2
)
SDXL = small.SDXL | dict(
    num_res_blocks=[1] * 3, transformer_depth=[0, 1, 2], transformer_depth_output=[0, 0, 1, 1, 2, 2]
)
