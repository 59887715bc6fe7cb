"""Data in any usual form (arrays, datasets, loaders, files) made one: images in [0, 1] and labels 0..C-1."""

from __future__ import annotations

from proard_nas.data.channels import to_channels
from proard_nas.data.checks import check_label_range
from proard_nas.data.encoding import ArrayEncoder
from proard_nas.data.files import Part, image_folder, load_npz
from proard_nas.data.loaders import DatasetSource, LoaderSource
from proard_nas.data.opening import open_data
from proard_nas.data.parts import validation_part
from proard_nas.data.preparing import DataSummary, PreparedData, prepare
from proard_nas.data.scanning import Scan, scan
from proard_nas.data.serving import check_columns, image_batches, labelled_source
from proard_nas.data.sharding import sharded
from proard_nas.data.sizes import check_image_size, smallest_size
from proard_nas.data.sources import ArraySource, Source, check_source
from proard_nas.data.splitting import split_indices

__all__ = [
    "ArrayEncoder",
    "ArraySource",
    "DataSummary",
    "DatasetSource",
    "LoaderSource",
    "Part",
    "PreparedData",
    "Scan",
    "Source",
    "check_columns",
    "check_image_size",
    "check_label_range",
    "check_source",
    "image_batches",
    "image_folder",
    "labelled_source",
    "load_npz",
    "open_data",
    "prepare",
    "scan",
    "sharded",
    "smallest_size",
    "split_indices",
    "to_channels",
    "validation_part",
]
