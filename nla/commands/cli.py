"""The console script `nla`: what needs no training run. A person's mistake is one line on stderr and exit status 2.

    nla explain <pair> "some text"     explanations of the activations at its tokens, with their cosine
    nla compare <pair> <pair> ...      what several pairs, layers or checkpoints say about the same text
    nla report <pair> "some text"      report.html: every token with its explanation and how far to believe it
    nla app <pair>                     the same live in a browser: choose tokens, sample again, edit an explanation
    nla steer <pair> "text" --replace old=new   a word of the explanation edited: what the model says then
    nla info <pair>                    what a saved pair is
    nla preflight experiment=world ... everything that can go wrong in a training run, tried out in under a minute
    nla plan [train.py's overrides]    memory, time and cost of a run, before anything is loaded
    nla layers <model> <texts>         which layer to explain, measured before any training
    nla pretrain ...                   a small target from text (see nla pretrain --help)
    nla doctor                         versions, devices, memory, disk, and known problems of this machine
    nla publish <pair> <org/name>      the pair with a model card, to the hub; --dry-run looks first
    nla prepare ...                    shards of activations and explanations (see nla prepare --help)
    nla prepare --new-model <model>    marker, norms and scale of a model that has no config, and the config

Nothing heavy is imported before a verb needs it.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nla.errors import ConfigError, NLAError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["pretrain"]:
            from nla.commands.pretrain import main as pretrain  # has its own argument parser

            return pretrain(given[1:]) or 0
        if given[:1] == ["preflight"] and not {"-h", "--help"} & set(given):
            return _preflight(given[1:])
        if given[:1] == ["prepare"] and any(argument.startswith("--new-model") for argument in given):
            from nla.commands.new_model import main as new_model

            return new_model(given[1:])
        if given[:1] == ["prepare"]:
            from nla.commands.prepare import main as prepare

            return prepare(given[1:])
        if given[:1] == ["compare"]:
            from nla.commands.compare import main as compare

            return compare(given[1:])
        if given[:1] == ["report"]:
            from nla.commands.report import main as report

            return report(given[1:])
        if given[:1] == ["app"]:
            from nla.commands.app import main as app

            return app(given[1:])
        if given[:1] == ["layers"]:
            from nla.commands.layers import main as layers

            return layers(given[1:])
        if given[:1] == ["plan"]:
            from nla.commands.plan import main as plan

            return plan(given[1:])
        options = _parser().parse_args(given)
        return options.verb(options)
    except NLAError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nla", description="Natural Language Autoencoders.")
    verbs = parser.add_subparsers(required=True, metavar="verb")

    explain = verbs.add_parser("explain", help="explain the activations that a text leaves in the target")
    explain.add_argument("pair", help="folder or hub id of a saved pair, or the name of a run")
    explain.add_argument("text", help="the text to be read")
    explain.add_argument("--positions", default="all", help="all (default), last, or token indices: 3,7,-1")
    explain.add_argument("--samples", type=int, default=1, help="explanations per position (default 1)")
    explain.add_argument("--best-of", type=int, default=1, help="show the best of this many, by reconstruction")
    explain.add_argument("--temperature", type=float, default=None, help="0 is greedy, the default for one sample")
    explain.add_argument("--max-new-tokens", type=int, default=150)
    explain.add_argument("--seed", type=int, default=0)
    explain.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16, float16, nf4")
    explain.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    explain.set_defaults(verb=_explain)

    steer = verbs.add_parser("steer", help="edit an explanation and see how the model's output changes")
    steer.add_argument("pair", help="folder or hub id of a saved pair, or the name of a run")
    steer.add_argument("text", help="the prompt; its last token is explained")
    steer.add_argument("--replace", action="append", required=True, metavar="old=new", help="may be given again")
    steer.add_argument("--layer-position", choices=("last", "all"), default="last",
                       help="steer the prompt's last token alone (default), or all from there on")  # fmt: skip
    steer.add_argument("--scale", type=float, default=1.0, help="in units of the activation's norm (default 1)")
    steer.add_argument("--tokens", type=int, default=32, help="of each continuation (default 32)")
    steer.add_argument("--temperature", type=float, default=0.0, help="of the continuations; 0 (default) is greedy")
    steer.add_argument("--max-new-tokens", type=int, default=150, help="of the explanation (default 150)")
    steer.add_argument("--seed", type=int, default=0)
    steer.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16, float16, nf4")
    steer.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    steer.add_argument("--json", action="store_true", help="print JSON instead")
    steer.set_defaults(verb=_steer)

    info = verbs.add_parser("info", help="show a saved pair: base model, layer, scales, prompts")
    info.add_argument("pair", help="folder or hub id of a saved pair")
    info.set_defaults(verb=_info)

    doctor = verbs.add_parser("doctor", help="versions, devices, memory, disk, hub login, known bad combinations")
    doctor.set_defaults(verb=_doctor)

    publish = verbs.add_parser("publish", help="push a pair with a model card to the hub")
    publish.add_argument("pair", help="folder of a saved pair")
    publish.add_argument("name", help="org/name; the halves become org/name-av and org/name-ar")
    publish.add_argument("--metrics", default=None, help="evaluation/metrics.json of the pair")
    publish.add_argument("--licence", default=None, help="of the base model (default: asked from the hub)")
    publish.add_argument("--dry-run", action="store_true", help="write the folders and cards to --out, push nothing")
    publish.add_argument("--out", default="published", help="where the folders are written (default published)")
    publish.add_argument("--private", action="store_true")
    publish.set_defaults(verb=_publish)

    preflight = verbs.add_parser("preflight", help="try out a training run: modules, injection, one step of each stage")
    preflight.add_argument("overrides", nargs="*", help="those of train.py: experiment=<name> key=value ...")
    verbs.add_parser("plan", help="what a run will need: memory, time, cost", add_help=False)
    verbs.add_parser("app", help="read, explain and edit live, in a browser", add_help=False)
    verbs.add_parser("compare", help="what several pairs say about the same text, side by side", add_help=False)
    verbs.add_parser("report", help="a page of what a pair says at every token of a text", add_help=False)
    verbs.add_parser("layers", help="which layer to explain, measured before any training", add_help=False)
    verbs.add_parser("pretrain", help="train a small target model from text", add_help=False)
    verbs.add_parser("prepare", help="store activations and explanations of a corpus in shards", add_help=False)
    return parser


def named_pair(name: str) -> str:
    """The pair of a run by the run's name, where there is one: `smollm2` is runs/smollm2/nla before any other."""
    run = Path("runs") / name / "nla"
    return str(run) if not Path(name).exists() and "/" not in name and run.is_dir() else name


def _explain(options: argparse.Namespace) -> int:
    positions = _positions(options.positions)
    if not options.text.strip():
        raise ConfigError("the text is empty: give at least one word, in quotation marks")
    for name in ("samples", "best_of"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nla.models.backbone import usable_device
    from nla.models.pair import NLA
    from nla.models.target import Target

    device = usable_device(options.device, "--device")
    name = named_pair(options.pair)
    target = Target.of_pair(name, options.dtype).to(device)
    pair = NLA.from_pretrained(name, dtype=options.dtype, adapter="saved", base=target.model).to(device)
    reading = target.read([options.text], positions=positions)
    temperature = (
        options.temperature if options.temperature is not None else float(options.samples * options.best_of > 1)
    )
    texts = pair.explain(
        reading.activation,
        samples=options.samples,
        temperature=temperature,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        best_of=options.best_of,
    )
    title = f"{printable(pair.base_model)}, layer {pair.layer}"
    table = Table("position", "token", "explanation", "cosine", title=title)
    for sample in range(options.samples):
        cosine = pair.score(reading.activation, [row[sample] for row in texts]).cosine.tolist()
        for index, row in enumerate(texts):
            explanation = row[sample]
            table.add_row(
                str(reading.position[index]),
                Text(printable(reading.token[index])),
                Text("(malformed)" if explanation is None else printable(explanation)),
                "-" if explanation is None else f"{cosine[index]:.3f}",
            )
    Console(highlight=False).print(table)
    return 0


def _steer(options: argparse.Namespace) -> int:
    from nla.commands.steer import steer

    return steer(named_pair(options.pair), options)


def _preflight(overrides: Sequence[str]) -> int:
    from nla.config.check import check_train
    from nla.config.compose import compose
    from nla.training.preflight import preflight

    checks = preflight(check_train(compose("train", overrides)))
    return 2 if any(check.status == "failed" for check in checks) else 0


def _info(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nla.commands.info import describe
    from nla.models.pretrained.loading import HALVES

    table = Table("", *HALVES, title=printable(str(options.pair)))
    for name, *cells in describe(options.pair):
        table.add_row(name, *(Text(printable(cell)) for cell in cells))
    Console(highlight=False).print(table)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from nla.commands.doctor import examine

    findings = examine(Path.cwd())
    for finding in findings:
        sign = {"fact": " ", "note": "?", "problem": "!"}[finding.kind]
        print(f"{sign} {finding.topic:<16} {printable(finding.text)}")
    return 1 if any(finding.kind == "problem" for finding in findings) else 0


def _publish(options: argparse.Namespace) -> int:
    from nla.commands.publish import base_licence, prepare, push
    from nla.models.pretrained.loading import find_halves
    from nla.models.pretrained.metadata import read_metadata

    if re.fullmatch(r"[\w.-]+/[\w.-]+", options.name) is None:
        raise ConfigError(f"name {options.name!r}: expected org/name")
    out = Path(options.out)
    if out.exists():
        raise ConfigError(f"--out {out} exists: remove it, or give another")
    base = read_metadata(find_halves(options.pair)[0]).base_model
    licence = options.licence or base_licence(base)
    folders = prepare(options.pair, Path(options.metrics) if options.metrics else None, licence, out)
    if options.dry_run:
        for half, folder in folders.items():
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{half}: {folder}, {size / 2**20:.1f} MiB, card in README.md; nothing was pushed")
        return 0
    for repository in push(folders, options.name, options.private):
        print(f"https://huggingface.co/{repository}")
    return 0


def _positions(given: str) -> str | list[list[int]]:
    if given in ("all", "last"):
        return given
    try:
        return [[int(index) for index in given.split(",")]]
    except ValueError:
        raise ConfigError(f"--positions {given}: give all, last, or token indices such as 3,7,-1") from None


def printable(text: str) -> str:
    """Nothing in it moves the cursor, changes a colour or turns the writing direction."""
    return "".join(character if character.isprintable() else "·" for character in text.replace("\n", "⏎"))


if __name__ == "__main__":
    sys.exit(main())
