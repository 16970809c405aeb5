"""Every refusal of this package."""


class TenfoldError(ValueError):
    """The input cannot be served: the message says what, how far off, and what to do."""


class TenfoldWarning(UserWarning):
    """The result stands, but something about it should be known."""
