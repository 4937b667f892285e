"""A loaded diffusion model: the facts of its family, its attention, and a private twin of it that has gradients."""
