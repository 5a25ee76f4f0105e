"""The XML annotation of CSIST-100K and SeqCSIST: the only place that knows that xc is a row.

::

    <annotation>
      <filename>image_0.png</filename>
      <size><width>11</width><height>11</height><depth>1</depth></size>
      <sigma>0.5</sigma>
      <object>
        <name>Target</name>
        <coordinate><xc>row</xc><yc>column</yc><brightness>flux</brightness></coordinate>
      </object>
      ...
    </annotation>

Coordinates are px, 0-based, with integers at pixel centres; a variant made in MATLAB is 1-based.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as Xml

import defusedxml.ElementTree as SafeXml
import numpy as np
from defusedxml.common import DefusedXmlException

from csunmix._validation import FloatArray, as_number, as_shape
from csunmix.io import atomic_write
from csunmix.targets import check_table, make_table

if TYPE_CHECKING:
    import pandas as pd

_TAGS = ("xc", "yc", "brightness")  # row, column, flux


def read_annotation(path: str | os.PathLike[str], *, one_based: bool = False) -> pd.DataFrame:
    """Read the targets of one image from its XML annotation.

    Parameters
    ----------
    path : path-like
        The XML file.
    one_based : bool
        Whether the file counts pixels from 1 (made in MATLAB): 1 px is taken off both coordinates.

    Returns
    -------
    pandas.DataFrame
        Target table of frame 0, in the order of the file: ``y`` from ``xc``, ``x`` from ``yc``
        (px), ``flux`` from ``brightness`` (DN). No object gives an empty table.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not XML, declares a document type or entities, has another root than
        ``annotation``, or an object lacks a coordinate, has one that is not a finite number, is
        of negative brightness or lies more than 1 px outside of the image size that the file
        declares; the message names the file, the object and the tag.
    """
    y, x, flux = read_objects(path, one_based=one_based).T
    return make_table(np.zeros(y.size), y, x, flux, n_frames=1, attrs={"source": os.fspath(path)})


def write_annotation(
    path: str | os.PathLike[str],
    targets: pd.DataFrame,
    *,
    shape: tuple[int, int],
    filename: str,
    sigma: float | None = None,
    one_based: bool = False,
) -> None:
    """Write the targets of one image as an XML annotation, whole or not at all.

    Parameters
    ----------
    path : path-like
        The XML file; replaced if it is there.
    targets : pandas.DataFrame
        Target table of one frame; may be empty.
    shape : tuple of int
        Image shape ``(n_y, n_x)``, px.
    filename : str
        Name of the image file.
    sigma : float, optional
        Width of the PSF, px; left out by default.
    one_based : bool
        Whether to count pixels from 1.

    Raises
    ------
    TypeError
        If `targets` is not a DataFrame.
    ValueError
        If `targets` lacks a column, has values that are not finite or rows of several frames, or
        `shape` or `sigma` is not positive.

    Notes
    -----
    Numbers are written with the digits that bring back the same double; adding 1 px for
    `one_based` may round the last one.
    """
    check_table(targets)
    if targets["frame"].nunique() > 1:
        raise ValueError(
            f"targets must be of one frame, got frames {sorted(set(targets['frame']))}"
        )
    objects = targets[["y", "x", "flux"]].to_numpy(dtype=np.float64)
    write_objects(path, objects, shape=shape, filename=filename, sigma=sigma, one_based=one_based)


def read_objects(path: str | os.PathLike[str], *, one_based: bool = False) -> FloatArray:
    """Targets of an annotation as plain numbers: `read_annotation` without the table.

    Returns
    -------
    ndarray, shape (n_targets, 3)
        Columns ``y`` (px), ``x`` (px) and flux (DN).
    """
    path = os.fspath(path)
    root = _parse(path)
    if root.tag != "annotation":
        raise ValueError(f"{path}: the root must be <annotation>, got <{root.tag}>")
    sizes = [_declared(root, tag, path) for tag in ("height", "width")]
    rows = []
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        coordinate = _only(item, "coordinate", where)
        *position, flux = (_number(_only(coordinate, tag, where), where) for tag in _TAGS)
        for tag, value, size in zip(_TAGS[:2], position, sizes, strict=True):
            if not -1.5 <= value - one_based <= size + 0.5:
                raise ValueError(
                    f"{where}: <{tag}> must be within 1 px of the image of {size:g} px, "
                    f"got {value:g}"
                )
        if flux < 0:
            raise ValueError(f"{where}: <brightness> must not be negative, got {flux:g}")
        rows.append([*position, flux])
    objects = np.array(rows, dtype=np.float64).reshape(-1, 3)
    objects[:, :2] -= one_based
    return objects


def write_objects(
    path: str | os.PathLike[str],
    objects: Iterable[Iterable[float]],
    *,
    shape: tuple[int, int],
    filename: str,
    sigma: float | None = None,
    one_based: bool = False,
) -> None:
    """Write an annotation of targets ``(y, x, flux)``; otherwise as `write_annotation`."""
    height, width = as_shape(shape)
    root = Xml.Element("annotation")
    _add(root, "filename", filename)
    size = Xml.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 1)):
        _add(size, tag, str(value))
    if sigma is not None:
        _add(root, "sigma", repr(as_number(sigma, "sigma", above=0.0)))
    for y, x, flux in objects:
        item = Xml.SubElement(root, "object")
        _add(item, "name", "Target")
        coordinate = Xml.SubElement(item, "coordinate")
        row_column_flux = (y + one_based, x + one_based, flux)
        for tag, number in zip(_TAGS, row_column_flux, strict=True):
            _add(coordinate, tag, repr(float(number)))
    Xml.indent(root)
    with atomic_write(path) as temporary:
        Xml.ElementTree(root).write(temporary, encoding="utf-8")


def _parse(path: str) -> Xml.Element:
    """The root of an XML file that declares nothing."""
    try:
        root: Xml.Element = SafeXml.fromstring(Path(path).read_bytes(), forbid_dtd=True)
    except DefusedXmlException:
        raise ValueError(f"{path}: has document type or entity declarations, refused") from None
    except (Xml.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: not well-formed XML: {error}") from None
    return root


def _only(parent: Xml.Element, tag: str, where: str) -> Xml.Element:
    found = parent.findall(tag)
    if len(found) != 1:
        raise ValueError(f"{where}: must have one <{tag}>, has {len(found) or 'none'}")
    return found[0]


def _declared(root: Xml.Element, tag: str, path: str) -> float:
    """Image size along one axis, px; infinite where the file does not say."""
    element = root.find(f"size/{tag}")
    return math.inf if element is None else _number(element, path)


def _number(element: Xml.Element, where: str) -> float:
    try:
        value = float(element.text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: <{element.tag}> must be a finite number, got {element.text!r}")
    return value


def _add(parent: Xml.Element, tag: str, text: str) -> None:
    Xml.SubElement(parent, tag).text = text
