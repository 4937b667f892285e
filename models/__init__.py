"""Networks and their files: the pivot encoder, and the faces that it looks at."""
