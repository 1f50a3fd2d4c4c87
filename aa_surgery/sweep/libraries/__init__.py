"""Models of the libraries that people use beside timm, torchvision and MMPretrain, made small."""

from aa_surgery.sweep.libraries.examination import examine_specimen
from aa_surgery.sweep.libraries.findings import LAWS, Findings
from aa_surgery.sweep.libraries.registry import LIBRARIES, installed, names, specimen
from aa_surgery.sweep.libraries.run import CANNOT, sweep_libraries
from aa_surgery.sweep.libraries.specimen import Library, Specimen
from aa_surgery.sweep.libraries.table import document

__all__ = [
    "CANNOT",
    "LAWS",
    "LIBRARIES",
    "Findings",
    "Library",
    "Specimen",
    "document",
    "examine_specimen",
    "installed",
    "names",
    "specimen",
    "sweep_libraries",
]
