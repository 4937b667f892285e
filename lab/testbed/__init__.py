"""Small models of the true shapes, shards and independent references, for tests and benchmarks. Needs ComfyUI."""
