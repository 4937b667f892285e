"""OmniPortrait (ICLR 2026), to be read with the paper open: the training objective (5) in objective.py, the mask (6) in
mask.py, matches and their similarity (7, 8) in match.py, background masking, energy and the guided step (9 to 11) in
guide.py. torch alone; how it enters ComfyUI is told in sampling/."""
