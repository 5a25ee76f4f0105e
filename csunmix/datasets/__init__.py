"""The field's data sets, and the answers of networks, as they lie on disk."""

from csunmix.datasets._layout import Dataset
from csunmix.datasets.annotation import read_annotation, write_annotation
from csunmix.datasets.answers import read_answer, read_coco, read_maps, read_points
from csunmix.datasets.csist import read_csist, write_csist
from csunmix.datasets.seq_csist import SequenceDataset, read_seq_csist, write_seq_csist

__all__ = [
    "Dataset",
    "SequenceDataset",
    "read_annotation",
    "read_answer",
    "read_coco",
    "read_csist",
    "read_maps",
    "read_points",
    "read_seq_csist",
    "write_annotation",
    "write_csist",
    "write_seq_csist",
]
