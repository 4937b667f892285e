"""A diffusion model that ComfyUI has loaded, seen by a method: the facts of its family (family.py, and one file a
family), gradients through it that leave it untouched (private.py), its attention (attention.py), its clock."""
