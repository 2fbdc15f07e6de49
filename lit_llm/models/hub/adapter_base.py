"""base.json beside an adapter: the base that its updates were trained on, and in which form.

PEFT's adapter_config.json names the base, but not its weights or their quantisation, and ignores
other files in the folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.io.atomic import write_text
from lit_llm.models.kernels.quantized import FORMATS, Format

_FILE = "base.json"


@dataclass
class AdapterBase:
    """The base of an adapter."""

    init_from: str
    """Hugging Face directory or GGUF file, see `locate`."""
    digest: str
    """Of the weights before quantisation, see `lit_llm.models.hub.digest`."""
    dtype: str
    """torch's name of the dtype in which the base was held: "float32", "bfloat16", "float16"."""
    quantize: Format | None = None
    """Form of the linear layers' weights, see `lit_llm.models.quantize`."""

    def write(self, folder: Path) -> None:
        """Write base.json into an adapter's folder."""
        write_text(folder / _FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> AdapterBase | None:
        """Read base.json in an adapter's folder. None if there is none: another program's adapter.

        Raises:
            UserError: it is broken.
        """
        file = folder / _FILE
        try:
            base = cls(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file}: not readable ({error})") from None
        if base.quantize not in (None, *FORMATS):
            raise UserError(
                f"{file}: quantize is {base.quantize!r}; known are {', '.join(FORMATS)}"
            )
        return base
