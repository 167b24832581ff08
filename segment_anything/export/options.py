"""What an export writes. Apart from the code that does it, so that the command line's help needs no torch."""

from dataclasses import dataclass

FORMS = ("original", "batched", "prepared")
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export writes.

    Raises:
        ValueError: for a value outside its range; the message begins with the option's name.
    """

    decoders: str = "original,batched,prepared"
    """Forms of the decoder, with commas between. original: the original package's interface, one object, masks at full
    size. batched: many objects in one run. prepared: the same on what was computed once an image, without mask prompts;
    half the multiplications of the original form (nano: two thirds)."""
    precision: str = "fp32"
    """fp32; fp16: weights stored in half the size, computed in float32; int8: as fp16, and the matrix products of the
    encoder in 8 bits (faster on CPUs, inexact)."""
    normalise: bool = False
    """Let the encoder take (h, w, 3) uint8 RGB, resized, and normalise and pad it; else it takes (1, 3, S, S) float32,
    normalised and padded."""
    return_single_mask: bool = False
    """Original form: the best mask only."""
    use_stability_score: bool = False
    """Original form: rank masks by stability instead of predicted IoU."""
    return_extra_metrics: bool = False
    """Original form: also return stability and area of each mask."""
    gelu_approximate: bool = False
    """Write GELU with tanh, for runtimes without erf."""
    tolerance: float | None = None
    """Refuse an export whose outputs deviate more from torch's, as a share of their standard deviation; by default what
    the precision allows."""
    external_data_mb: float = 2000.0
    """Keep the weights of larger graphs in a file beside them; ONNX itself ends at 2 GB."""

    def __post_init__(self) -> None:
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown:
            raise ValueError(f"decoders must be of {', '.join(FORMS)}, with commas between; got {unknown[0]!r}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}.")
        if self.tolerance is not None and self.tolerance < 0:
            raise ValueError(f"tolerance must be at least 0; got {self.tolerance}.")
        if not 0 <= self.external_data_mb <= 2000:
            raise ValueError(f"external_data_mb must lie in 0..2000, where ONNX ends; got {self.external_data_mb}.")

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of the decoder, each once."""
        return tuple(dict.fromkeys(word.strip() for word in self.decoders.split(",") if word.strip()))
