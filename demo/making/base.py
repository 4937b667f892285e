"""`python run.py make base --data FOLDER --vae FILE --out CHECKPOINT`: train the demo's diffusion model on rendered
portraits and write it as one checkpoint."""

from omniportrait import run
from omniportrait.demo.learning.pictures import open_pictures

run.use_comfyui()

from omniportrait.demo.learning.denoising import arguments, train  # noqa: E402  needs ComfyUI

if __name__ == "__main__":
    options = arguments().parse_args()
    train(options, open_pictures(options.data))
