"""The commands of scripts/kernel-model."""

import argparse
import sys
from pathlib import Path

from . import chips, kernels, record, report, shapes, launch, toolkit


def main(about: str, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kernel-model", description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    all_chips = chips.load()

    def command(name: str):
        made = commands.add_parser(name)
        if name in ("table", "predict", "record"):
            made.add_argument("--gpu", action="append", choices=sorted(all_chips), default=None)
            made.add_argument("--only", default="")
        if name in ("table", "predict"):
            made.add_argument("--coverage", type=Path)
        return made

    command("table")
    command("predict")
    command("record").add_argument("--kernels", action="store_true")
    command("check")
    command("sources")
    command("validate").add_argument("peers", nargs="*", metavar="PEER=FOLDER")
    options = parser.parse_args(arguments)
    try:
        if getattr(options, "coverage", None):
            kernels.counted(options.coverage)
        return {"table": table, "predict": predict, "record": make_record, "check": check, "sources": sources,
                "validate": validate}[options.command](options, all_chips)
    except ValueError as error:
        print(f"kernel-model: {error}", file=sys.stderr)
        return 2


def gpus(options, all_chips) -> list[chips.Chip]:
    return [all_chips[name] for name in options.gpu or record.GPUS]


def table(options, all_chips) -> int:
    for chip in gpus(options, all_chips):
        print(report.kernel_table(chip, options.only))
    return 0


def predict(options, all_chips) -> int:
    for chip in gpus(options, all_chips):
        for shape in shapes.every():
            if options.only in shape.name:
                p = launch.predict(shape, chip)
                print(f"{chip.name:9} {shape.name:66} {p.us:10.1f} us {p.gbs:6.0f} GB/s {p.tflops:5.0f} TFLOP/s "
                      f"{p.share:4.0%} {p.bound}")
    return 0


def make_record(options, all_chips) -> int:
    for chip in gpus(options, all_chips):
        if options.kernels:
            made = record.read(chip.name)
            made["nvcc"] = toolkit.version(toolkit.nvcc())
            made["kernels"] = {name: record.watched_figures(name, chip) for name in record.WATCHED.get(chip.name, ())}
        else:
            made = record.record(chip, options.only)
        print(record.write(chip.name, made).relative_to(toolkit.ROOT))
    if not options.kernels and not options.only:
        report.write_docs()
    return 0


def check(options, all_chips) -> int:
    accepted = record.reasons(record.GROWN)
    breaches, remarks, count = [], [], 0
    for gpu, names in record.WATCHED.items():
        old = record.read(gpu)
        version = toolkit.version(toolkit.nvcc())
        if old["nvcc"] != version:
            print(f"the record of {gpu} is of nvcc {old['nvcc']}, this is {version}: record it anew", file=sys.stderr)
            return 2
        new = {name: record.watched_figures(name, all_chips[gpu]) for name in names}
        count += len(new)
        more, said = record.compare(gpu, old["kernels"], new, accepted)
        breaches += more
        remarks += said
    for line in remarks + breaches:
        print(line)
    print(f"kernel-model: {count} kernels, {len(breaches)} breaches")
    return 1 if breaches else 0


def sources(options, all_chips) -> int:
    for chip in all_chips.values():
        print(f"{chip.name} ({chip.title})")
        for key, entry in chip.entries.items():
            if isinstance(entry, list):
                between = f" ({entry[2]} to {entry[3]})" if len(entry) == 4 else ""
                print(f"  {key:20} {entry[0]}{between}  {entry[1]}")
    for key, text in next(iter(all_chips.values())).sources.items():
        print(f"{key}: {text}")
    return 0


def validate(options, all_chips) -> int:
    from . import validation
    peers = {}
    for text in options.peers:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise ValueError(f"{text} is not PEER=FOLDER of a folder that is there")
        peers[name] = Path(folder)
    return validation.run(peers, all_chips)
