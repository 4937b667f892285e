"""RB-Guidance: pure maths (schedule, region, matching, energy) beside the hooks into ComfyUI."""
