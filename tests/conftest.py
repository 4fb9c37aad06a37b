"""Hypothesis profiles: "quick" by default, "deep" with HYPOTHESIS_PROFILE=deep."""

import os

from hypothesis import settings

settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
