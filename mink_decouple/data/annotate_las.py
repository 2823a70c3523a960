"""LAS and LAZ files with the classes and confidences of their points, header and other dimensions kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from mink_decouple.data.blocks import Block, Supply
from mink_decouple.data.io_las import ENCODING_ERRORS, chunks, opened, without_index

CHUNK_POINTS = 1 << 20


def annotate_las(source: Path, target: Path, supply: Supply) -> None:
    """Write `target`: scales, offsets, coordinate system, records and every dimension of `source`, see `annotate`.

    The index of a COPC file is left out: the copy is plain LAZ.

    Raises:
        ValueError: laspy or lazrs is missing, the file is damaged, or one of its own dimensions is named as ours but of
            another type.
    """
    with opened(source) as reader:
        import laspy

        header = copy.deepcopy(reader.header)
        header.vlrs = without_index(header.vlrs)
        _add(source, header, "confidence", np.dtype(np.float32))
        name = "classification"
        # readers, ours too, take a dimension `label` for the labels before the classification
        labelled = "label" in header.point_format.dimension_names
        if labelled or not supply.within(0, 31 if header.point_format.id < 6 else 255):
            name = "prediction"
            _add(source, header, name, np.dtype(np.int32))
        with laspy.open(str(target), mode="w", header=header, encoding_errors=ENCODING_ERRORS) as writer:
            for points in chunks(source, reader, CHUNK_POINTS):
                writer.write_points(_record(points, header, supply.take(len(points)), name))
            if evlrs := without_index(reader.evlrs or []):
                writer.write_evlrs(evlrs)


def _add(source: Path, header: Any, name: str, dtype: np.dtype) -> None:
    import laspy

    if name not in header.point_format.dimension_names:
        header.add_extra_dims([laspy.ExtraBytesParams(name=name, type=dtype)])
    elif header.point_format.dimension_by_name(name).dtype != dtype:
        found = header.point_format.dimension_by_name(name).dtype
        raise ValueError(f"{source}: has a dimension {name!r} of {found}, not of a prediction ({dtype}); rename it")


def _record(points: Any, header: Any, block: Block, name: str) -> Any:
    import laspy

    record = laspy.ScaleAwarePointRecord.zeros(len(points), header=header)
    for field in points.array.dtype.names:
        record.array[field] = points.array[field]
    record[name] = block.ids.astype(np.uint8 if name == "classification" else np.int32)
    record["confidence"] = block.confidence
    return record
