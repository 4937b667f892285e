"""`python run.py make base --data FOLDER --vae FILE --out CHECKPOINT`: train the demo's diffusion model on rendered
portraits and write it as one checkpoint."""

from ..learning.denoising import arguments, train
from ..learning.pictures import open_pictures


def main(words: list[str]) -> None:
    options = arguments().parse_args(words)
    train(options, open_pictures(options.data))
