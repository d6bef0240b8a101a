"""Files of tensors."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Writes tensors as safetensors; whoever may read other new files may read this one.

    Raises:
        OSError: If the file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors itself would let nobody but the owner read it
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(mode)
