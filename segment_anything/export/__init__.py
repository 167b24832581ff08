"""Models out of torch: ONNX files of the image encoder and of the decoder in three forms, compared with torch.

`segment_anything.onnx` runs them without torch; docs/export.md describes the files for other programs. What needs torch
is imported when it is called, because the command line reads the options before.
"""

from typing import TYPE_CHECKING, Any

from segment_anything.export.options import FORMS, PRECISIONS, ExportOptions

if TYPE_CHECKING:
    from segment_anything.export.exporter import export_model
    from segment_anything.export.verify import ExportError

__all__ = ["FORMS", "PRECISIONS", "ExportError", "ExportOptions", "export_model"]


def __getattr__(name: str) -> Any:
    if name == "export_model":
        from segment_anything.export.exporter import export_model

        return export_model
    if name == "ExportError":
        from segment_anything.export.verify import ExportError

        return ExportError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
