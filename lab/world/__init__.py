"""The portrait world: people who never lived, drawn from a parametric head, their clothes and their places."""
