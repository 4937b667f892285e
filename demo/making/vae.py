"""`python run.py make vae --data FOLDER --out FILE`: train the demo's autoencoder on rendered portraits."""

from omniportrait.demo.learning.pictures import open_pictures
from omniportrait.demo.learning.reconstruction import arguments, train

if __name__ == "__main__":
    options = arguments().parse_args()
    train(options, open_pictures(options.data))
