"""What all tests share: property tests without clocks, because the machines that run them are busy ones."""

from hypothesis import HealthCheck, settings

settings.register_profile("reelyard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("reelyard")
