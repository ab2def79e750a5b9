"""The environment of the worker's child processes: what they need to run, and nothing that the worker was given."""

import os
import re
from pathlib import Path

from app.platform.redaction import is_named_like_a_secret

_UNTRUSTED = r"PATH|PYTHONPATH|PYTHONSAFEPATH|HOME|LANG|LC_ALL|TZ|LD_LIBRARY_PATH|VIRTUAL_ENV"
_LIBRARIES = (
    "ATEN|OMP|GOMP|KMP|MKL|OPENBLAS|DNNL|ONEDNN|CUDA|CUDNN|CUBLAS|NVIDIA|NCCL|GLOO|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH"
    "|TRITON|HIP|HSA|ROCR|MIOPEN|MALLOC"
)
_ALLOWED_TO_ALL = re.compile(_UNTRUSTED)
_ALLOWED = re.compile(rf"{_UNTRUSTED}|LC_[A-Z]+|LD_PRELOAD|USER|LOGNAME|CC|CXX|PYTHON[A-Z]+|({_LIBRARIES})_\w+")
"""Where programs and libraries are, and how libraries compute. All other variables stay with the worker."""
_ONLINE = re.compile(r"(?i:https?_proxy|no_proxy|all_proxy|ssl_cert_(file|dir)|requests_ca_bundle|curl_ca_bundle)")
"""How the internet is reached from here, which may hold a proxy's password."""
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME")
"""Folders in which compilers keep their results, each in a run's own: one run must not leave code for another."""


def child_environment(temporary: Path, *, untrusted: bool = False, online: bool = False) -> dict[str, str]:
    """Return an environment of allowed variables of this process, with this folder for temporary files.

    untrusted: keep only what Python needs to start, with one thread and no GPU. online: keep also the proxy and the
    certificates by which the internet is reached.
    """
    allowed = _ALLOWED_TO_ALL if untrusted else _ALLOWED
    kept = {
        name: value
        for name, value in os.environ.items()
        if (allowed.fullmatch(name) and not is_named_like_a_secret(name)) or (online and _ONLINE.fullmatch(name))
    }
    kept |= {"TMPDIR": str(temporary)} | {name: str(temporary / name.lower()) for name in _CACHES}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if untrusted else kept
