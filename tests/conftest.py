"""One thread per process: results do not depend on it, and two cores are shared better."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("shared", deadline=None)  # a core that is shared makes any time long
settings.load_profile("shared")
