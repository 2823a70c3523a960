"""Settings that must stand before torch or Triton is loaded."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes that share the tests out share the cores, too
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter; read when its own functions are defined.
    os.environ["TRITON_INTERPRET"] = "1"
