"""The command line: `mink-decouple COMMAND` (`COMMANDS` below), and the scripts of tools/ over the same functions."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mink_decouple import __version__, options

# Idle OpenMP threads would spin between torch's kernels and take the cores from ours; read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from mink_decouple.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; the exit code is 0, 2 for a user's error, 1 for a failed run, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="mink-decouple", description="Segment point clouds from very few labels.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (configure, run) in COMMANDS.items():
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        configure(sub)
        sub.set_defaults(run=run)
    return guarded(parser.parse_args(argv))


def tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one sub-command as a script of its own."""
    configure, run = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=run.__doc__)
    configure(parser)
    parser.set_defaults(run=run)
    return guarded(parser.parse_args(argv))


class FailedRuns(Exception):
    """Trainings of an experiment failed: a line for each."""


def guarded(args: argparse.Namespace) -> int:
    """Run, turning a user's error into clear lines and exit code 2; one of several processes ends here."""
    if os.environ.get("WORLD_SIZE", "1") in ("0", "1"):
        return _code(args.run, args)
    if args.run not in (train, evaluate):
        print(f"error: {args.run.__name__}: is for one process; several share train and evaluate only", file=sys.stderr)
        return 2
    from mink_decouple.engine.leave import leave

    leave(_code(args.run, args))


def _code(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    try:
        run(args)
    except ImportError as error:
        print(f"error: {error}; see what is missing: mink-decouple doctor", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except FailedRuns as error:
        print("\n".join(f"failed: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        told = str(error) or "stopped; continue a training with --resume, anything else with the same command"
        print(told, file=sys.stderr)
        return getattr(error, "code", 130)
    except _stopped() as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _stopped() -> tuple[type[Exception], ...]:
    # they load torch, which a mistyped argument need not wait for
    from mink_decouple.engine.memory import OutOfMemory
    from mink_decouple.engine.optim import Diverged
    from mink_decouple.engine.processes import Left

    return Diverged, OutOfMemory, Left


def train(args: argparse.Namespace) -> None:
    """Train with a label budget, score on every raw point, and write the run folder."""
    from mink_decouple.config import outweighed
    from mink_decouple.engine.events import say
    from mink_decouple.engine.memory import named_settings
    from mink_decouple.engine.processes import joined, may_restart, restarted
    from mink_decouple.engine.runtime import choose_device, keep_freed_memory
    from mink_decouple.engine.state import free_folder
    from mink_decouple.engine.train import Trainer

    device = choose_device(args.device)
    for name, asked in (("--resume", args.resume), ("--max-restarts", may_restart())):
        if asked and args.output is None:
            raise ValueError(f"{name}: needs --output, the folder of the run to continue")
    if args.resume and args.config is None and (args.output / "config.yaml").is_file():
        args.config = args.output / "config.yaml"
    config = _config(args)
    if device.type == "cpu":
        keep_freed_memory()
    with joined(device) as processes:
        output = args.output or Path(processes.text(str(free_folder(config))))
        say(f"run folder: {output}")
        if args.config is not None and (lost := outweighed(args.config, config, args.recipe)):
            say(f"note: the recipe {config.recipe} decides {', '.join(lost)}, not {args.config}; --set wins over both")
        resume = args.resume or (restarted() and output.is_dir() and any(output.iterdir()))
        with named_settings(config, training=True):
            result = Trainer(config, output, device, resume, processes, args.pretrained).run()
    if result is not None:
        from mink_decouple.present import present

        present(result, output)


def evaluate(args: argparse.Namespace) -> None:
    """Score a checkpoint on every raw point of the evaluation split and write metrics.json."""
    from mink_decouple.engine.evaluate import evaluate_checkpoint
    from mink_decouple.engine.events import say
    from mink_decouple.engine.processes import joined
    from mink_decouple.engine.runtime import choose_device

    beside = args.checkpoint.parent if args.checkpoint.is_dir() else args.checkpoint.parent.parent
    output = args.output or beside / f"evaluation-{args.checkpoint.stem}"
    device = choose_device(args.device)
    with joined(device) as processes:
        evaluate_checkpoint(args.checkpoint, lambda own: _config(args, own), output, device, processes)
        say(f"wrote {output / 'metrics.json'}")


def predict(args: argparse.Namespace) -> None:
    """Write files with a class and a confidence for every point, in their own formats."""
    from mink_decouple.engine.predict_files import predict_files
    from mink_decouple.engine.runtime import choose_device, keep_freed_memory

    if args.votes is not None and args.votes < 1:
        raise ValueError(f"--votes {args.votes}: must be at least 1")
    device = choose_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    columns = args.columns.split(",") if args.columns else None
    predict_files(args.checkpoint, args.inputs, args.output, device, args.votes, columns, args.overwrite, args.smooth)


def export(args: argparse.Namespace) -> None:
    """Write a trained network as safetensors and a JSON card, for others to use."""
    from mink_decouple.engine.export import export_network

    card = export_network(args.checkpoint, args.output, args.licence)
    scores = card["scores"]
    said = f", mIoU {100 * scores['miou']:.1f}" if scores else ""
    print(f"wrote {args.output}: {card['backbone']} {card['variant']}, {card['parameters']:,} numbers{said}")


def view(args: argparse.Namespace) -> None:
    """Make a page to turn a cloud around in a browser (truth, prediction, error, confidence), or a still picture."""
    from mink_decouple.engine.view import classes_of, sight_of_file, sights_of_run
    from mink_decouple.report.figures import room_picture
    from mink_decouple.report.viewer import MOST_POINTS, write_page
    from mink_decouple.report.window import show

    if args.window == (args.output is not None):
        raise ValueError("view: say where to with --output FILE.html or FILE.png, or --window")
    most = MOST_POINTS if args.points is None else args.points
    if most < 1:
        raise ValueError(f"--points {args.points}: must be at least 1")
    if args.input.is_dir():
        sights = sights_of_run(args.input)
        places = [(args.output or Path()) / f"{sight.title}.html" for sight in sights]
    else:
        known = None if args.classes is None else classes_of(args.classes)
        columns = args.columns.split(",") if args.columns else None
        sights, places = [sight_of_file(args.input, args.truth, known, columns)], [args.output]
    if args.window:
        show(sights[-1].title, sights[-1].coords, sights[-1].layers, sights[-1].classes, args.layer)
        return
    for sight, place in zip(sights, places, strict=True):
        if place.suffix.lower() == ".png":
            labels = {name: rows for name, rows in sight.layers.items() if name not in ("colour", "confidence")}
            first, last = labels.pop("truth", None), labels.pop("prediction", None)
            room_picture(sight.coords, first, last, sight.classes, place, labels, sight.title)
        else:
            write_page(place, sight.title, sight.coords, sight.layers, sight.classes, most)
        print(f"wrote {place}")


def labels(args: argparse.Namespace) -> None:
    """Draw a label budget once and keep it as a file for any number of runs."""
    from mink_decouple.data.budget import describe
    from mink_decouple.engine.scenes import load_split, open_dataset, training_labels

    config = _config(args)
    if args.output.exists():
        raise ValueError(f"{args.output}: exists; label files are not overwritten, choose another --output")
    dataset = open_dataset(config)
    drawn = training_labels(config, dataset, load_split(config, dataset, "train"))
    drawn.save(args.output)
    print(f"{describe(drawn)}\nwrote {args.output}")


def convert(args: argparse.Namespace) -> None:
    """Weights of MinkowskiEngine's example MinkUNet -> checkpoint; a checkpoint -> such weights."""
    from mink_decouple.engine.convert import export_weights, import_weights, read

    if args.output.exists():
        raise ValueError(f"{args.output}: exists; choose another --output")
    ours, content = read(args.weights)
    if ours:
        if args.config is not None or args.set:
            raise ValueError(f"{args.weights}: is a checkpoint with its own settings; leave out --config and --set")
        export_weights(content, args.weights, args.output)
    else:
        fixed = ("backbone=", "model.variant=", "model.head=")
        for pair in args.set:
            if pair.replace(" ", "").startswith(fixed):
                raise ValueError(f"--set {pair}: the weights decide that; leave it out")

        def configure(variant: str) -> Config:
            args.backbone = "minkunet"
            args.set = [*args.set, f"model.variant={variant}", "model.head=linear"]
            return _config(args)

        import_weights(content, args.weights, configure, args.output)
    print(f"wrote {args.output}")


def doctor(args: argparse.Namespace) -> None:
    """Say which engines, libraries and devices work here, what is missing, and what will be slower."""
    try:
        import torch  # noqa: F401  # the one library without which nothing can be examined
    except ImportError as error:
        raise ValueError(f"torch does not import ({error}); install it: pip install torch") from None
    from mink_decouple.engine.doctor import examine

    findings = examine()
    print("\n".join(str(finding) for finding in findings))
    broken = [finding.subject for finding in findings if finding.state == "broken"]
    if broken:
        raise ValueError(f"training will not run here: see {', '.join(broken)} above")


def submit(args: argparse.Namespace) -> None:
    """Predict the test split with a checkpoint and write a checked zip for the benchmark's server."""
    from mink_decouple.engine.runtime import choose_device
    from mink_decouple.engine.submit import submit_checkpoint

    device = choose_device(args.device)
    submit_checkpoint(
        args.checkpoint, lambda own: _config(args, own), args.output, device, args.server, args.description
    )
    print(f"wrote {args.output}")


def pool(args: argparse.Namespace) -> None:
    """Score several folds as one: add their confusion matrices (S3DIS: 6 folds)."""
    from mink_decouple.engine.pool import pool_runs

    pool_runs(args.runs, args.output)
    print(f"wrote {args.output}")


def prepare(args: argparse.Namespace) -> None:
    """Turn a raw download into memory-mapped scenes and a manifest; called again, it continues."""
    from mink_decouple.config import parse_overrides
    from mink_decouple.data.adapters import adapter
    from mink_decouple.data.prepare import describe
    from mink_decouple.data.prepare import prepare as run

    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: must be at least 1")
    make = adapter(args.dataset, parse_overrides(args.set))
    print(describe(run(make, args.root, args.output, args.workers, args.scenes)))
    print(f"wrote {args.output / 'manifest.json'}")


def check(args: argparse.Namespace) -> None:
    """Look at every scene before training: what would stop it, what would spoil its figures, what to know of."""
    from mink_decouple.data.check_report import as_data, describe, lines
    from mink_decouple.engine.check import check_data
    from mink_decouple.engine.runtime import write_json

    report = check_data(_config(args))
    print(describe(report), flush=True)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, as_data(report))
        print(f"wrote {args.output}", flush=True)
    errors = lines(report.of("error"))
    if errors:
        raise ValueError("\n".join(errors))


def init(args: argparse.Namespace) -> None:
    """Look at a folder of clouds and write a first configuration and classes for it."""
    from mink_decouple.config import BACKBONES, load_config
    from mink_decouple.data.proposal import propose
    from mink_decouple.data.survey import describe, survey
    from mink_decouple.engine.runtime import write_text

    name = args.name or args.folder.resolve().name
    config, classes = args.output / f"{name}.yaml", args.output / f"{name}_classes.yaml"
    for path in (config, classes):
        if path.exists():
            raise ValueError(f"{path}: exists; choose another --output or --name")
    looks = survey(args.folder, args.columns.split(",") if args.columns else None)
    print(describe(looks), flush=True)
    proposal = propose(looks, args.folder.as_posix(), classes.as_posix())
    args.output.mkdir(parents=True, exist_ok=True)
    columns = f"columns: [{args.columns}]\n" if args.columns else ""
    try:
        write_text(classes, proposal.classes + columns)
        write_text(config, proposal.config)
        for backbone in BACKBONES:
            load_config(config, backbone=backbone)
    except BaseException:  # both or none: one of them would stop the next try
        for path in (classes, config):
            path.unlink(missing_ok=True)
        raise
    print("\n".join([*(f"note: {note}" for note in proposal.notes), f"wrote {classes}", f"wrote {config}"]))
    print(f"next: mink-decouple check --config {config}\n      mink-decouple train --config {config}")


def experiment(args: argparse.Namespace) -> None:
    """Run what is missing of a grid of trainings (recipes, backbones, label budgets, seeds); print one table."""
    from mink_decouple.config import parse_overrides
    from mink_decouple.study.run import Study

    output = args.output or Path("runs") / args.experiment.stem
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: must be at least 1")
    study = Study(args.experiment, output, parse_overrides(args.set), args.only, args.seeds, args.records)
    if args.list:
        print("\n".join(study.listing()))
        return
    from mink_decouple.engine.runtime import choose_device
    from mink_decouple.engine.settings import check_settings

    failures = study.run(choose_device(args.device).type, args.jobs, check_settings)
    print("\n".join(study.table()))
    typed = subprocess.list2cmdline if os.name == "nt" else shlex.join
    print(f"a report: tools/compare.py {typed(study.report_arguments())}")
    if failures:
        raise FailedRuns("\n".join(f"{one.cell.name}: {one.reason} (see {one.log})" for one in failures))


def compare(args: argparse.Namespace) -> None:
    """Put runs side by side: one page and one JSON file from run folders and files of records."""
    from mink_decouple.report.compare import compare as run

    notes = run(args.runs, args.output, args.reference, args.title, args.records, args.projection)
    print("\n".join([*notes, f"wrote {args.output}", f"wrote {args.output.with_suffix('.json')}"]))


def _config(args: argparse.Namespace, own: Config | None = None) -> Config:
    """The configuration that the arguments ask for; without `--config`, that of a checkpoint where there is one."""
    from mink_decouple.config import load_config, merge, override, parse_overrides, require_free

    overrides = parse_overrides(args.set)
    for value, tree in ((args.labels, {"labels": {"budget": args.labels}}), (args.seed, {"seed": args.seed})):
        if value is not None:
            overrides = merge(tree, overrides)
    if own is not None:
        require_free(overrides)
        if args.config is None:
            return override(own, overrides)
    return load_config(args.config, backbone=args.backbone, recipe=args.recipe, overrides=overrides)


Configure = Callable[[argparse.ArgumentParser], None]

COMMANDS: dict[str, tuple[Configure, Callable[[argparse.Namespace], None]]] = {
    "train": (options.train, train),
    "evaluate": (options.evaluate, evaluate),
    "predict": (options.predict, predict),
    "export": (options.export, export),
    "view": (options.view, view),
    "labels": (options.labels, labels),
    "convert": (options.convert, convert),
    "doctor": (options.doctor, doctor),
    "submit": (options.submit, submit),
    "pool": (options.pool, pool),
    "prepare": (options.prepare, prepare),
    "init": (options.init, init),
    "check": (options.check, check),
    "experiment": (options.experiment, experiment),
    "compare": (options.compare, compare),
}
