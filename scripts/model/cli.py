"""The commands of scripts/kernel-model."""

import argparse
import sys
from pathlib import Path

from . import chips, coverage, kernels, record, report, shapes, launch, toolkit


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
        return made

    command("table")
    command("predict")
    command("record").add_argument("--kernels", action="store_true")
    counting = command("count")
    counting.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    counting.add_argument("--ptx", type=Path, default=toolkit.ROOT / "target/ptx")
    command("check")
    command("sources")
    validating = command("validate")
    validating.add_argument("peers", nargs="+", metavar="PEER=FOLDER")
    validating.add_argument("--keep", action="store_true")
    options = parser.parse_args(arguments)
    try:
        return {"table": table, "predict": predict, "record": make_record, "count": count, "check": check,
                "sources": sources, "validate": validate}[options.command](options, all_chips)
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
    """Figures that grew want a reason first, as in `check`."""
    new = {gpu: record.all_watched(all_chips[gpu]) for gpu in record.WATCHED}
    breaches = []
    for gpu in new:
        breaches += record.compare(gpu, record.read(gpu)["kernels"], new[gpu], record.reasons(record.GROWN), recording=True)[0]
        breaches += record.miscounted(all_chips[gpu])
    if breaches:
        print("\n".join(breaches + ["nothing was recorded"]), file=sys.stderr)
        return 1
    for chip in gpus(options, all_chips):
        if options.kernels:
            made = record.read(chip.name) | {"nvcc": toolkit.version(toolkit.nvcc()), "kernels": new.get(chip.name, {})}
        else:
            made = record.record(chip, new.get(chip.name, {}), options.only)
        print(record.write(chip.name, made).relative_to(toolkit.ROOT))
    record.settle(record.GROWN)
    if not options.kernels and not options.only:
        report.write_docs()
    return 0


def count(options, all_chips) -> int:
    """Of each kernel and target what the first folder says that has counts of it."""
    kept, lacking = {}, []
    for name, chip in sorted({(name.partition("/")[0], chip.ptx): (name, chip) for name, chip in counted_kernels(all_chips)}.values(),
                             key=lambda item: (item[0], item[1].ptx)):
        plain = name.partition("/")[0]
        for folder in options.folders:
            try:
                counts = coverage.read(folder, plain, chip.ptx, options.ptx)
                shares = {}
                for side in ("/decode", "/prefill") if plain.startswith("mixed") else ("",):
                    k = kernels.kernel(plain + side, chip.code, chip.ptx)
                    shares |= coverage.shares_of(k.flow, k.head, counts)
                kept[plain, chip.ptx] = shares
                break
            except ValueError as error:
                why = error
        else:
            lacking.append(f"{plain} for {chip.ptx}: {why}")
    coverage.write(kept)
    print("\n".join([*lacking, f"{coverage.KEPT.relative_to(toolkit.ROOT)}: {len(kept)} kernels"]))
    return 1 if lacking else 0


def counted_kernels(all_chips):
    for gpu, names in record.WATCHED.items():
        yield from ((name, all_chips[gpu]) for name in names)
    # Code for sm_80 and sm_90; B200's is of the same PTX.
    yield from ((name, all_chips[gpu]) for gpu in ("a100-80g", "h100") for name in report.SHOWN)


def check(options, all_chips) -> int:
    accepted = record.reasons(record.GROWN)
    breaches, remarks, count = [], [], 0
    for gpu in record.WATCHED:
        old = record.read(gpu)
        version = toolkit.version(toolkit.nvcc())
        if old["nvcc"] != version:
            print(f"the record of {gpu} is of nvcc {old['nvcc']}, this is {version}: record it anew", file=sys.stderr)
            return 2
        new = record.all_watched(all_chips[gpu])
        count += len(new)
        more, said = record.compare(gpu, old["kernels"], new, accepted)
        breaches += more + record.miscounted(all_chips[gpu])
        remarks += said
    for line in remarks + breaches:
        print(line)
    print(f"kernel-model: {count} loops, {len(breaches)} breaches")
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
    return validation.run(peers, all_chips, options.keep)
