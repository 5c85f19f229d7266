"""How a run ends early. Wrong settings and wrong data are plain ``ValueError``s."""


class Stopped(Exception):
    """A run was asked to stop; repeating its command goes on. The text names what asked."""


class RunFailed(Exception):
    """A run cannot go on. The text is one sentence: what was expected, what came, what to do."""
