"""Every error that sctrt raises on purpose; nothing else lives here."""


class SctrtError(Exception):
    """Base of all errors that carry a message meant for the user: expected, given, next step."""


class VolumeError(SctrtError):
    """The volume (or its file) is unfit: shape, values, affine, unit or encoding."""


class BundleError(SctrtError):
    """The model bundle is missing, damaged, or of a format this version cannot read."""


class EngineError(SctrtError):
    """A runtime could not load or run a network, or was given the wrong shape."""


class DeviceError(SctrtError):
    """The device asked for is absent, or the arrays lie on different devices."""


class ReportError(SctrtError):
    """A file is no report of `sctrt bench`, a damaged one, or one without what is asked of it."""


class UnwritableError(SctrtError):
    """A file cannot be written whole; what was there before stays."""

    def __init__(self, path: object, reason: Exception) -> None:
        super().__init__(f"{path} cannot be written ({reason}); is the disk full? What was there before stays")


class OutOfMemory(DeviceError):
    """The device has too little free memory for what was asked; with less at a time it may fit."""
