"""Training data: photographs, shards, and the samples that a task reads from them."""
