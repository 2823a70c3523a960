"""The arguments of each command of `cli`."""

from __future__ import annotations

import argparse
from pathlib import Path


def common(parser: argparse.ArgumentParser, default: str = "the synthetic buildings", keys: str = "") -> None:
    """A configuration and settings over it."""
    parser.add_argument("--config", type=Path, help=f"YAML file (default: {default})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help=f"override one setting{keys}; repeatable"
    )
    parser.set_defaults(labels=None, seed=None, backbone=None, recipe=None)


SCORED = ("the checkpoint's own", " of data, eval or model.engine")
"""How `common` speaks of a network that is trained already."""


def device(parser: argparse.ArgumentParser) -> None:
    """Where to compute."""
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda (default: auto)")


def budget(parser: argparse.ArgumentParser) -> None:
    """A label budget and its seed."""
    parser.add_argument(
        "--labels", help="label budget: 1pt | 1%% | 20x | uniform:1%% | scans:5%% | full | list:FILE | FILE.npz"
    )
    parser.add_argument("--seed", type=int, help="seed of the labels, the weights and the batches")


def train(parser: argparse.ArgumentParser) -> None:
    """Of `train`."""
    common(parser, "the synthetic buildings, or with --resume the run's own")
    budget(parser)
    device(parser)
    parser.add_argument("--backbone", help="minkunet | randla (default: that of the configuration)")
    parser.add_argument("--recipe", help="a name in configs/recipes, for example supervised or table5/row2, or a file")
    parser.add_argument("--output", type=Path, help="run folder (default: a new one in runs/)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output, with its own settings")
    parser.add_argument(
        "--pretrained",
        type=Path,
        metavar="RUN",
        help="take the pre-training of a run that kept it in place of training it",
    )


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Of `evaluate`."""
    common(parser, *SCORED)
    device(parser)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of metrics.json (default: evaluation-NAME in the run folder, or beside an exported network)",
    )


def predict(parser: argparse.ArgumentParser) -> None:
    """Of `predict`."""
    device(parser)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="file or folder of files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a run: RUN/checkpoints/last.pt")
    parser.add_argument("--output", type=Path, required=True, help="file for one input file, else a folder")
    parser.add_argument("--votes", type=int, help="passes averaged (default: as the network was scored)")
    parser.add_argument(
        "--smooth", choices=("none", "segments"), help="pool within segments (default: as the network was scored)"
    )
    parser.add_argument("--columns", metavar="x,y,z,...", help="names of the columns of bare text, .npy and .bin files")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")


def export(parser: argparse.ArgumentParser) -> None:
    """Of `export`."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--licence", help="of the weights, such as CC-BY-4.0")


def view(parser: argparse.ArgumentParser) -> None:
    """Of `view`."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="a point file, or the folder of a run")
    parser.add_argument("--output", type=Path, help="the .html or .png file; of a run the folder of its pages")
    parser.add_argument(
        "--window", action="store_true", help="open3d's viewer in place of a file, where there is a screen"
    )
    parser.add_argument("--layer", help="what the window shows: prediction, error, ... (default: prediction)")
    parser.add_argument("--truth", type=Path, help="file of the same points whose labels are the truth")
    parser.add_argument("--classes", type=Path, help="names and colours: a classes.yaml or a checkpoint")
    parser.add_argument("--columns", metavar="x,y,z,...", help="names of the columns of bare text, .npy and .bin files")
    parser.add_argument("--points", type=int, help="most points of a page (default: 400,000)")


def labels(parser: argparse.ArgumentParser) -> None:
    """Of `labels`."""
    common(parser)
    budget(parser)
    parser.add_argument("--output", type=Path, required=True, help="the .npz file to write")


def convert(parser: argparse.ArgumentParser) -> None:
    """Of `convert`."""
    common(parser)
    parser.add_argument("weights", type=Path, help="a state dict of MinkowskiEngine's example, or a checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")


def doctor(parser: argparse.ArgumentParser) -> None:
    """Of `doctor`, which has none."""


def submit(parser: argparse.ArgumentParser) -> None:
    """Of `submit`."""
    common(parser, *SCORED)
    device(parser)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the .zip file to write")
    parser.add_argument("--server", help="scannet | semantic-8 | reduced-8 | semantickitti (default: of data.dataset)")
    parser.add_argument("--description", help="text for the description.txt of SemanticKITTI")


def pool(parser: argparse.ArgumentParser) -> None:
    """Of `pool`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder that holds metrics.json, one a fold")
    parser.add_argument("--output", type=Path, required=True, help="the .json file to write")


def experiment(parser: argparse.ArgumentParser) -> None:
    """Of `experiment`."""
    parser.add_argument("experiment", type=Path, help="YAML file of the grid, such as configs/experiments/table5.yaml")
    parser.add_argument("--output", type=Path, help="folder of the run folders (default: runs/NAME)")
    parser.add_argument("--jobs", type=int, help="trainings at once (default: as many as the machine allows)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only runs whose name holds one of these texts")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the file's")
    parser.add_argument("--records", type=Path, help="JSON file of finished runs: read, not run again, and added to")
    parser.add_argument("--list", action="store_true", help="show every run and its state, run nothing")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one setting of all runs")
    device(parser)


def compare(parser: argparse.ArgumentParser) -> None:
    """Of `compare`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, folder of them, or records file")
    parser.add_argument("--output", type=Path, required=True, help="the .html file to write")
    parser.add_argument(
        "--reference",
        metavar="RECIPE",
        help="what the others are compared with (default: supervised, else decoupled, else that of the first run)",
    )
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--records", type=Path, help="file of records to add the runs to, too")
    parser.add_argument("--projection", choices=("tsne", "pca"), default="tsne", help="of the features")


def prepare(parser: argparse.ArgumentParser) -> None:
    """Of `prepare`."""
    parser.add_argument("--dataset", required=True, help="s3dis | scannet | semantic3d | semantickitti | folder")
    parser.add_argument("--root", type=Path, required=True, help="folder of the download")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; later data.root")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--scenes", nargs="+", metavar="NAME", help="only these scenes or groups")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of s3dis: others=ignore; of scannet: axis_align=true; of semantickitti: every=10 (training scans)",
    )


def init(parser: argparse.ArgumentParser) -> None:
    """Of `init`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of point clouds")
    parser.add_argument("--output", type=Path, default=Path(), help="where the two files go (default: here)")
    parser.add_argument("--name", help="of the files (default: that of the folder)")
    parser.add_argument("--columns", metavar="x,y,z,...", help="names of the columns of bare text, .npy and .bin files")


def check(parser: argparse.ArgumentParser) -> None:
    """Of `check`."""
    common(parser)
    budget(parser)
    parser.add_argument("--backbone", help="minkunet | randla (default: that of the configuration)")
    parser.add_argument("--recipe", help="a name in configs/recipes, or a file")
    parser.add_argument("--output", type=Path, help="a .json file to write all findings and numbers to")
