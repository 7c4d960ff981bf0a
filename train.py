"""Train a Natural Language Autoencoder: python train.py [experiment=<name>] [overrides]. The same command resumes."""

import sys

from nla.config.check import check_train
from nla.config.launch import launch
from nla.training.program import train

if __name__ == "__main__":
    sys.exit(launch(train, "train", check_train))
