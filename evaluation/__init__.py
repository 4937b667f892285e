"""The paper's Table 1 on any checkpoint and any workflow: portraits over ComfyUI's API, judged, as a table."""
