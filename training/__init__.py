"""Training of the Pivot ID Encoder: the commands are the files here, `pivot/` holds what they are made of."""
