"""IC-Portrait, to be read with the paper open: the masked input (1, 2) in masking.py, the training objective (3) in
objective.py, cost volume, match and warp (4 to 6) in flow.py, annealed aggregation (7) in aggregate.py. torch alone;
how it enters ComfyUI is told in sampling/.

Everywhere the profile is the left half of what is joined along the width, and the lit picture the right one.
"""
