"""The tables that describe pipelines."""

from dataclasses import is_dataclass

from dpcomp import codec as codec_folder
from dpcomp import privacy as privacy_folder
from dpcomp import sparsify as sparsify_folder
from dpcomp.codec import entropy as entropy_folder
from dpcomp.codec import quantize as quantize_folder
from dpcomp.privacy import Unsafe
from dpcomp.wire.feedback import EF21, MomentumCorrection

# The classes that a table may name, by their names: the parts that the folders of the library export.
PARTS: dict[str, type] = {
    name: part
    for folder in (privacy_folder, sparsify_folder, codec_folder, quantize_folder, entropy_folder)
    for name, part in vars(folder).items()
    if is_dataclass(part) and isinstance(part, type) and part not in (Unsafe, quantize_folder.Bounds)
} | {part.__name__: part for part in (MomentumCorrection, EF21)}
