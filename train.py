"""Train a Natural Language Autoencoder: python train.py [experiment=<name>] [overrides]. The same command resumes."""

import sys

try:
    from nla.config.check import check_train
    from nla.config.launch import launch
    from nla.training.program import train
except ModuleNotFoundError as error:
    if (error.name or "").startswith("nla."):
        raise
    print(
        f"no module named {error.name!r}: activate the environment (source .venv/bin/activate), or make one "
        "(make demo, or pip install -e .)",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

if __name__ == "__main__":
    sys.exit(launch(train, "train", check_train))
