"""Blocks that at least two models use."""

import torch

# glibc hands large freed blocks back to the system, so that the next activation faults all its pages in again. It keeps blocks up to
# twice the size of the largest that it has seen freed, at most 32 MiB: show it one of that size, which is never touched.
torch.empty(2**25 - 2**16, dtype=torch.uint8)
