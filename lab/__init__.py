"""What nobody needs to use the pack: the portrait world, its models and measures, and the benchmarks."""
