"""`nla app <pair>`: the live page: type a text, choose a token, read its explanation, edit it and see what changes."""

import argparse
import importlib.util
from collections.abc import Sequence

from nla.commands.cli import named_pair
from nla.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Serve the page until Ctrl-C; the exit status. Raises NLAError."""
    parser = argparse.ArgumentParser(prog="nla app", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pair", help="folder or hub id of a saved pair, or the name of a run")
    parser.add_argument("--port", type=int, default=None, help="of this machine (default: the first free from 7860)")
    parser.add_argument("--share", action="store_true", help="a public address, through Gradio's servers, for 7 days")
    parser.add_argument("--max-new-tokens", type=int, default=150)
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16, float16, nf4")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the live page needs Gradio: pip install 'nla[app]'")
    if options.port is not None and not 0 < options.port < 65536:
        raise ConfigError(f"--port {options.port}: must be 1 to 65535")

    from nla.app import page
    from nla.models.backbone import usable_device
    from nla.models.pair import NLA
    from nla.models.target import Target

    device, name = usable_device(options.device, "--device"), named_pair(options.pair)
    target = Target.of_pair(name, options.dtype).to(device)
    pair = NLA.from_pretrained(name, dtype=options.dtype, adapter="saved", base=target.model).to(device)
    try:
        page.serve(page.page(pair, target, options.max_new_tokens), options.port, share=options.share)
    except OSError as error:
        raise ConfigError(f"--port {options.port}: {error}") from error
    return 0
