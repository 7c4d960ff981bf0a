"""Train a Natural Language Autoencoder: python train.py [experiment=<name>] [overrides]. The same command resumes."""

import sys

from nla.config.check import check_train
from nla.config.compose import launch
from nla.training import program as app

if __name__ == "__main__":
    sys.exit(launch(app.train, "train", check_train))
