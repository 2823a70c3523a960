"""Scores of predicted LAS or LAZ files without mink_decouple: by laspy, PyYAML and scikit-learn.

    python benchmarks/recompute_scores.py mine/tiles_classes.yaml runs/mine/metrics.json truth.laz predicted.laz [...]

Stops where a predicted file has other points than its source, where a column other than the classification, or the
header's scale, offset or records, differ from it, or where the IoU of a class is not that of metrics.json.
"""

import json
import sys
from pathlib import Path

import laspy
import numpy as np
import yaml
from sklearn.metrics import jaccard_score

EXTRA_BYTES = 4
"""Record id of the description of extra dimensions, to which the confidence is added."""


def records(las: laspy.LasData) -> list[bytes]:
    """The variable-length records that are to stay."""
    return [record.record_data_bytes() for record in las.header.vlrs if record.record_id != EXTRA_BYTES]


def main() -> None:
    """Compare files and figures."""
    classes, metrics, *files = sys.argv[1:]
    if not files or len(files) % 2:
        sys.exit(__doc__)
    tree = yaml.safe_load(Path(classes).read_text())["classes"]
    number = {raw: place for place, about in enumerate(tree.values()) for raw in about["raw"]}
    truth, found = [], []
    for source, predicted in zip(files[::2], files[1::2], strict=True):
        a, b = laspy.read(source), laspy.read(predicted)
        columns = [name for name in a.point_format.dimension_names if name != "classification"]
        same = len(a) == len(b) and all(np.array_equal(a[name], b[name]) for name in columns)
        same = same and np.array_equal(a.header.scales, b.header.scales) and records(a) == records(b)
        if not (same and np.array_equal(a.header.offsets, b.header.offsets)):
            sys.exit(f"{predicted}: more than the classification differs from {source}")
        added = sorted(set(b.point_format.dimension_names) - set(a.point_format.dimension_names))
        print(f"{predicted}: {len(b):,} points, {len(columns)} columns as they were, added {', '.join(added)}")
        truth.append([number.get(int(raw), -1) for raw in np.asarray(a.classification)])
        found.append([number[int(raw)] for raw in np.asarray(b.classification)])
    known = np.concatenate(truth) >= 0
    rows = np.concatenate(truth)[known], np.concatenate(found)[known]
    iou = jaccard_score(*rows, labels=range(len(tree)), average=None, zero_division=0.0)
    told = json.loads(Path(metrics).read_text())["iou"]
    for name, value in zip(tree, iou, strict=True):
        print(f"{name:24s} {value:.6f}  {told[name] or 0.0:.6f}")
    if not np.allclose(iou, [told[name] or 0.0 for name in tree], atol=1e-12):
        sys.exit("the scores differ")
    print("the scores are the same")


if __name__ == "__main__":
    main()
