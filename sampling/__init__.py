"""How a method enters a run of ComfyUI's sampling, and what a conditioning says about its people."""
