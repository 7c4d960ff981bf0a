"""Train a Natural Language Autoencoder: python train.py [experiment=<name>] [overrides]. The same command resumes."""

import sys

from nla.errors import outside_environment

try:
    from nla.config.check import check_train
    from nla.config.launch import launch
    from nla.training.program import train
except ModuleNotFoundError as error:
    print(outside_environment(error), file=sys.stderr)
    raise SystemExit(2) from None

if __name__ == "__main__":
    sys.exit(launch(train, "train", check_train))
