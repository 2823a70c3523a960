"""Settings that must stand before torch or Triton is loaded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter; read when its own functions are defined.
    os.environ["TRITON_INTERPRET"] = "1"
