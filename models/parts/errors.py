"""The exceptions of the suite: every failure that a user can meet has a name."""


class EmbergraphError(Exception):
    """Base of all errors raised on purpose by embergraph."""


class DataError(EmbergraphError, ValueError):
    """Data that cannot be used; the message names the variable, what was found and what is wanted."""


class SchemaError(DataError):
    """Data and model do not belong together: a declared input is missing, or has other dims or another kind."""


class NumericalError(EmbergraphError, ArithmeticError):
    """A computation left the finite numbers; names the step and the site.

    Attributes
    ----------
    fit
        The last good state as a `Fit`, where a routine had one, else None.
    """

    fit: object | None = None


class NotSparseError(EmbergraphError):
    """The data are not those of a sparse graph, so that nothing can be said of single edges."""


class LoadError(EmbergraphError, ValueError):
    """A saved fit that cannot be restored: another model, another format version, or a damaged file."""
