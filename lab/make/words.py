"""`python run.py make words --data FOLDER --base CHECKPOINT --out CHECKPOINT`: teach the demo's diffusion model to read
a word for each person, beside all that it knows."""

from ..learning.pictures import open_pictures
from ..learning.reading import arguments, train


def main(words: list[str]) -> None:
    options = arguments().parse_args(words)
    train(options, open_pictures(options.data))
