"""Train a Natural Language Autoencoder: python train.py [experiment=<name>] [overrides]. The same command resumes."""

import sys

from nla import app
from nla.composition import launch
from nla.config import check_train

if __name__ == "__main__":
    sys.exit(launch(app.train, "train", check_train))
