"""The field's data sets as they lie on disk: readers and writers."""

from csunmix.datasets._layout import Dataset
from csunmix.datasets.annotation import read_annotation, write_annotation
from csunmix.datasets.csist import read_csist, write_csist
from csunmix.datasets.seq_csist import SequenceDataset, read_seq_csist, write_seq_csist

__all__ = [
    "Dataset",
    "SequenceDataset",
    "read_annotation",
    "read_csist",
    "read_seq_csist",
    "write_annotation",
    "write_csist",
    "write_seq_csist",
]
