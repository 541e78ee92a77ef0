"""The tests, in one thread. Garbage collection is off while they are collected: it makes imports a sixth slower."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; several threads round differently
gc.disable()
