"""`python run.py make vae --data FOLDER --out FILE`: train the demo's autoencoder on rendered portraits."""

from ..learning.pictures import open_pictures
from ..learning.reconstruction import arguments, train


def main(words: list[str]) -> None:
    options = arguments().parse_args(words)
    train(options, open_pictures(options.data))
