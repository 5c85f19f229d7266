"""How a run ends early. Wrong settings and wrong data are plain ``ValueError``s."""


class Stopped(BaseException):
    """A run was asked to stop; repeating its command goes on. The text names what asked.

    Like KeyboardInterrupt it is no ``Exception``: decoders take any of these for a damaged file.
    """


class RunFailed(Exception):
    """A run cannot go on. The text is one sentence: what was expected, what came, what to do."""
