"""What holds for every test: Hypothesis measures no time, because a busy machine is no defect."""

from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")
