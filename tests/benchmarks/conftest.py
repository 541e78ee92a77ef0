"""Put benchmarks/ on the import path, since its scripts import each other from their folder."""

from __future__ import annotations

import sys

from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
