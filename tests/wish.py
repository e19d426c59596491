"""An interrupt of the main job that comes when a test wants it."""

from minipar.interrupt import Interrupt


class Wish(Interrupt):
    """Asks to stop once it has been asked `after` times whether to."""

    def __init__(self, after):
        self.left = after

    @property
    def requested(self):
        self.left -= 1
        return self.left < 0
